"""The command line: what it prints, what it costs to ask, every exit code, and what is left when it is stopped."""

import contextlib
import dataclasses
import errno
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.envs import storage
from headstart.envs.errors import Busy, DataError, Diverged, EnvironmentFailed, HeadstartError, UsageError
from headstart.envs.registry import ENVIRONMENTS, FRAME_BYTES
from headstart.experiments import check, cli, devices, doctor, door_key, pipeline, pool, study
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import Experiment

MAIN = dataclasses.replace(
    door_key.EXPERIMENT, arms={name: arm for name, arm in door_key.EXPERIMENT.arms.items() if arm.main}
)
HEADSTART = Path(sys.executable).parent / "headstart"
EXPERIMENTS = Path(cli.__file__).parent


def files_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, under which all caches would be too."""
    for name in ("HEADSTART_CACHE", "XDG_CACHE_HOME", "HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run` has asked of the pipeline, which does nothing; no device is tried."""
    monkeypatch.setattr(pipeline.torch.cuda, "is_available", lambda: False)
    calls: list[dict[str, Any]] = []

    def run_all(experiment: Experiment, seeds: tuple[int, ...], out: Path, **options: Any) -> None:
        calls.append({"experiment": experiment, "seeds": seeds, "out": out, **options})

    def write_report(directory: Path) -> SimpleNamespace:
        return SimpleNamespace(text="THE TABLE\n", table=directory / "table.md", picture=directory / "curves.png")

    monkeypatch.setattr(pool, "run_all", run_all)
    monkeypatch.setitem(sys.modules, "headstart.experiments.report", SimpleNamespace(write_report=write_report))
    return calls


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_all(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(pool, "run_all", run_all)


# ---- help ----
def test_no_arguments_print_help(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: headstart")
    for verb in cli.VERBS:
        assert f"• {verb}" in text


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"headstart {metadata.version('headstart')}\n"


def test_exit_codes_are_told(capsys):
    """By help and README, each of them."""
    codes = {0, 141, *(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))}
    codes |= {error.exit_code for error in (HeadstartError, *HeadstartError.__subclasses__())}
    assert cli.main(["--help"]) == 0
    readme = (Path(__file__).parents[2] / "README.md").read_text().partition("## Command line")[2]
    for text in (capsys.readouterr().out, readme):
        told = text.partition("Exit codes: ")[2].partition(".")[0]
        assert {int(code) for code in re.findall(r"\d+", told)} == codes


@pytest.mark.parametrize("verb", cli.VERBS.values())
def test_every_flag_has_one_sentence_of_help(verb: type, capsys):
    name = next(name for name in cli.VERBS if cli.VERBS[name] is verb)
    assert cli.main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    source = " ".join(Path(cli.__file__).read_text().split())
    for field in dataclasses.fields(verb):
        flag = f"--{field.name.replace('_', '-')}"
        assert flag in text or field.name.upper() in text
        told = [
            part.partition('"""')[0] for part in source.split(f" {field.name}: ")[1:] for part in part.split('"""')[1:2]
        ]
        assert any(sentence in text and sentence.endswith(".") for sentence in told), field.name


def test_help_names_the_main_arms(capsys):
    assert cli.main(["run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"(default: {' '.join(MAIN.arms)})" in text
    assert "as `headstart list` names them" in text


@pytest.mark.parametrize(
    "arguments", [[], ["run", "--help"], ["list"], ["doctor", "--help"], ["study", "--help"], ["run", "nothing"]]
)
def test_answers_at_once_and_imports_little(arguments: list[str]):
    code = f"""
import sys
from headstart.experiments.cli import main
main({arguments})
slow = {{"torch", "numba", "numpy", "gymnasium", "minigrid", "stable_baselines3", "matplotlib", "scipy", "tensorboard"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    seconds = []
    for _ in range(3):  # of processor time, which other processes on this machine hardly change
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5


# ---- list ----
def test_list(capsys):
    assert cli.main(["list"]) == 0
    text, _, arms = capsys.readouterr().out.partition("\n\n")
    head, *lines = text.splitlines()
    assert max(map(len, arms.splitlines())) <= 120
    assert {*cli.MAIN_ARMS, *cli.OTHER_ARMS, *cli.MEMORYLESS_ARMS} <= {*arms.split()}
    assert head.split() == list(cli.COLUMNS)
    assert max(map(len, [head, *lines])) <= 120
    rows = [line for line in lines if not line.startswith(" ")]
    assert [row.split()[0] for row in rows] == list(ENVIRONMENTS)
    assert all(row[head.index("expert") :].startswith(("bot", "memory planner", "planner")) for row in rows)
    facts = [line.strip().removeprefix("variant ").partition(": ")[::2] for line in lines if line.startswith(" ")]
    told = [[(row.id, row.stands_for), *((it.id, it.differs) for it in row.ood)] for row in ENVIRONMENTS.values()]
    assert facts == [fact for row in told for fact in row]


def test_list_says_what_is_observed_and_what_is_known(capsys):
    cli.main(["list"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dynamic_obstacles"))
    known = ENVIRONMENTS["dynamic_obstacles"]
    assert f"{known.history + 1} x {FRAME_BYTES}" in row
    assert row.split()[-4:] == [
        *("planner", f"{known.expert_length:g}"),
        *(f"{known.expert_success:.1%}", f"{known.random_success:.1%}"),
    ]


def test_list_json(capsys):
    assert cli.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(ENVIRONMENTS)
    fields = {field.name for field in dataclasses.fields(ENVIRONMENTS["door_key"])}
    assert all(set(row) == fields | {"frames", "frame_bytes", "arms"} for row in rows)
    for row in rows:
        arms = importlib.import_module(f"headstart.experiments.{row['name']}").EXPERIMENT.arms
        main, other = ([name for name, arm in arms.items() if arm.main is which] for which in (True, False))
        assert row["arms"]["main"] == main
        assert sorted(row["arms"]["other"]) == sorted(other)
    assert rows[1]["ood"][0]["id"] == ENVIRONMENTS["key_corridor"].ood[0].id
    assert rows[0]["budget"] == ENVIRONMENTS[rows[0]["name"]].budget


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_has_its_script(name: str):
    """And the script says what the registry says, so that only what its own lines decide can differ."""
    experiment = importlib.import_module(f"headstart.experiments.{name}").EXPERIMENT
    assert isinstance(experiment, Experiment)
    assert experiment == Experiment.of(ENVIRONMENTS[name], experiment.arms, experiment.rl)
    main = [name for name, arm in experiment.arms.items() if arm.main]
    assert main == ["scratch", "bc", "bc_long", "iwm", "reflect"]
    assert all(0 <= arm.memory <= experiment.history for arm in experiment.arms.values())
    bc = experiment.arms["bc"]
    assert experiment.arms == arms_around(bc.learner, bc.memory, reflect_ppo=experiment.arms["reflect"].ppo)
    source = (EXPERIMENTS / f"{name}.py").read_text()
    assert source.splitlines()[0].startswith('"""')
    assert f"python experiments/{name}.py " in source
    assert f"headstart run {name}\n" in source


def test_every_script_has_its_environment():
    scripts = {path.stem for path in EXPERIMENTS.glob("*.py") if "EXPERIMENT = " in path.read_text()}
    assert scripts == set(ENVIRONMENTS)


def test_no_module_hides_another():
    """`python experiments/door_key.py` puts this directory first on sys.path."""
    ours = {path.stem for path in EXPERIMENTS.glob("*.py")} - {"__init__"}
    assert not ours & set(sys.stdlib_module_names)
    assert not ours & set(metadata.packages_distributions())


# ---- run ----
def test_run_prints_plan_then_table_then_paths_then_tensorboard(here: Path, asked: list, capsys):
    assert cli.main(["run", "door_key", "--seed", "0", "1", "--processes", "1", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("door_key: MiniGrid-DoorKey-8x8-v0, 8 demonstrations")
    assert any("minutes" in line and "MB" in line for line in lines)
    table = lines.index("THE TABLE")
    assert lines[table + 2 : -2] == ["runs/door_key/table.md", "runs/door_key/curves.png"]
    assert lines[-2].endswith("tensorboard --logdir runs/door_key")
    assert lines[-1] == cli.CURVES
    assert asked == [
        {
            "experiment": MAIN,
            "seeds": (0, 1),
            "out": Path("runs"),
            "device": "cpu",
            "processes": 1,
            "fresh": False,
            "together": False,
            "compiled": False,
        }
    ]


def test_flags_change_a_copy(here: Path, asked: list):
    before = json.dumps(dataclasses.asdict(door_key.EXPERIMENT))
    flags = "--arms reflect bc --rl-steps 1000 --seed 3 3 4 --device cpu --out elsewhere --fresh"
    assert cli.main(["run", "door_key", *flags.split()]) == 0
    (call,) = asked
    assert list(call["experiment"].arms) == ["bc", "reflect"]
    assert call["experiment"].rl == dataclasses.replace(door_key.EXPERIMENT.rl, steps=1000)
    assert (call["seeds"], call["device"], call["out"], call["fresh"]) == ((3, 4), "cpu", Path("elsewhere"), True)
    assert call["processes"] == len(os.sched_getaffinity(0))
    assert json.dumps(dataclasses.asdict(door_key.EXPERIMENT)) == before


def test_controls_run_when_they_are_named(here: Path, asked: list):
    assert cli.main(["run", "door_key", "--arms", "noop", "bc"]) == 0
    assert cli.main(["run", "door_key", "--arms", "all"]) == 0
    named, everything = (call["experiment"].arms for call in asked)
    assert list(named) == ["bc", "noop"]
    assert everything == door_key.EXPERIMENT.arms
    assert {"dagger", "self_label", "random_judge", "reflect_matched"} <= everything.keys()


def test_no_rl(here: Path, asked: list):
    assert cli.main(["run", "door_key", "--no-rl"]) == 0
    arms = asked[0]["experiment"].arms
    assert list(arms) == list(MAIN.arms)
    assert not any(arm.rl for arm in arms.values())


def test_another_number_of_demonstrations_is_kept_beside_the_full_one(here: Path, asked: list, capsys):
    assert cli.main(["run", "door_key", "--demos", "4"]) == 0
    (call,) = asked
    assert call["experiment"] == dataclasses.replace(MAIN, name="door_key-4", demos=4)
    assert pipeline.Run(call["experiment"], "bc", 3, call["out"]).directory == Path("runs/door_key-4/bc/seed3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("door_key-4: MiniGrid-DoorKey-8x8-v0, 4 demonstrations")
    assert "results: runs/door_key-4" in lines
    assert lines[-2].endswith("--logdir runs/door_key-4")


def test_the_experiments_own_number_changes_nothing(here: Path, asked: list):
    assert cli.main(["run", "door_key", "--demos", str(door_key.EXPERIMENT.demos)]) == 0
    assert asked[0]["experiment"] == MAIN


def test_runs_that_could_not_share_a_table_are_refused_before_they_run(here: Path, asked: list, capsys):
    done = here / "runs/door_key/reflect/seed1"
    for name, value in {"config.json": {"rl": {"steps": 9000}}, "curve.json": []}.items():
        storage.save_json(done / name, value, kind={"config.json": "configuration"}.get(name, "curve"), schema=1)
    assert cli.main(["run", "door_key", "--arms", "bc", "--rl-steps", "2000"]) == 2
    assert "reflect/seed1: has 9000 steps of PPO, and these runs would have 2000" in capsys.readouterr().err
    assert cli.main(["run", "door_key", "--arms", "bc", "--rl-steps", "2000", "--fresh"]) == 2
    assert asked == []
    assert cli.main(["run", "door_key", "--arms", "bc", "--rl-steps", "9000"]) == 0
    assert cli.main(["run", "door_key", "--arms", "bc", "--no-rl"]) == 0
    again = ["run", "door_key", "--arms", "reflect", "--seed", "1", "--rl-steps", "2000", "--fresh"]
    assert cli.main(again) == 0  # the run itself is no obstacle
    assert len(asked) == 3


def test_dry_run_says_everything_and_writes_nothing(here: Path, asked: list, capsys):
    assert cli.main(["run", "door_key", "--arms", "bc", "--dry-run", "--rl-steps", "5000", "--seed", "7"]) == 0
    text = capsys.readouterr().out
    decided, end = json.JSONDecoder().raw_decode(text)
    assert (decided["seeds"], decided["out"]) == ([7], "runs")
    assert decided["experiment"]["rl"]["steps"] == 5000
    assert decided["experiment"]["arms"]["bc"]["learner"]["class"] == "BCConfig"
    assert decided["experiment"]["arms"]["bc"]["learner"]["updates"] == door_key.EXPERIMENT.arms["bc"].learner.updates
    assert list(decided["experiment"]["arms"]) == ["bc"]
    assert "about 1 minute in" in text[end:]
    assert "MB" in text[end:]
    assert asked == []
    assert files_below(here.parent) == ["work"]


def test_finished_runs_are_counted(here: Path, asked: list, capsys):
    done = here / "runs/door_key/bc/seed0"
    for name in ("summary.json", "policy.safetensors"):
        storage.save_json(done / name, {}, kind="summary", schema=1)
    (here / "runs/door_key/iwm/seed0").mkdir(parents=True)
    (here / "runs/door_key/iwm/seed0/summary.json").write_text("{}")  # not in a manifest: never finished
    command = ["run", "door_key", "--dry-run", "--arms", "bc", "iwm"]
    assert cli.main(command) == 0
    assert "1 of 2 runs are finished" in capsys.readouterr().out
    assert cli.main([*command, "--fresh"]) == 0
    assert "are finished" not in capsys.readouterr().out
    storage.remove(done / "policy.safetensors")
    assert cli.main(command) == 0  # without PPO, which is now to come
    assert "are finished" not in capsys.readouterr().out
    assert cli.main([*command, "--no-rl"]) == 0
    assert "1 of 2 runs are finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("begun", "flags", "changed"),
    [
        ("", "", ""),
        ("--no-rl", "", ""),
        ("", "--no-rl", ""),
        ("--rl-steps 2048", "--no-rl", ""),
        ("--rl-steps 2048", "--rl-steps 4096", "rl.steps: 2048 -> 4096"),
    ],
)
def test_another_configuration_is_refused_at_once(
    begun: str, flags: str, changed: str, here: Path, asked: list, capsys
):
    """By a dry run too, which writes nothing; in the words of the pipeline, where it refuses, and nowhere else."""
    command = ["run", "door_key", "--arms", "bc"]
    assert cli.main([*command, *begun.split()]) == 0
    assert cli.main([*command, *flags.split(), "--fresh"]) == 0
    before, now = (pipeline.Run(call["experiment"], "bc", 0, call["out"]) for call in asked)
    pipeline._keep_config(before)
    for name in ("summary.json", "policy.safetensors"):
        storage.save_json(before.directory / name, {}, kind="summary", schema=1)
    asked.clear()
    capsys.readouterr()
    left = files_below(here), (before.directory / "config.json").read_bytes()
    codes = [cli.main([*command, *flags.split(), *more]) for more in (["--dry-run"], [], ["--dry-run", "--fresh"])]
    out, err = capsys.readouterr()
    assert (files_below(here), (before.directory / "config.json").read_bytes()) == left
    if changed:
        with pytest.raises(UsageError, match="another configuration") as refused:
            pipeline._keep_config(now)
        assert codes == [2, 2, 0]
        assert changed in err
        assert err == 2 * f"headstart: {refused.value}\n"
        assert "are finished" not in out
        assert asked == []
    else:
        pipeline._keep_config(now)
        assert codes == [0, 0, 0]
        assert out.count("1 of 1 runs are finished") == 2


@pytest.mark.parametrize("flags", [["--help"], ["--dry-run", "--arms", "bc"], ["--arms", "nonsense"]])
def test_the_script_is_the_command(here: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys):
    code = cli.main(["run", "door_key", *flags])
    expected = capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["experiments/door_key.py", *flags])
    with pytest.raises(SystemExit) as end:
        cli.run_script("door_key")
    assert end.value.code == code
    assert capsys.readouterr() == expected


def test_tensorboard_can_be_typed_as_printed(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the virtual environment is not activated, and where names need quotes."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    program, *arguments = shlex.split(cli._tensorboard(Path("my runs/door_key")))
    assert arguments == ["--logdir", "my runs/door_key"]
    assert subprocess.run([program, "--version_tb"], check=True, capture_output=True, text=True).stdout.strip()


# ---- study ----
def test_study_prints_the_table_then_paths(here: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (here / "runs/fetch-128/bc/seed0").mkdir(parents=True)
    asked = []

    def write_study(out: Path, names: tuple[str, ...]) -> study.Written:
        asked.append((out, names))
        return study.Written(out / "study/table.md", out / "study/study.png", "THE TABLE\n")

    monkeypatch.setattr(study, "write_study", write_study)
    assert cli.main(["study"]) == 0
    assert cli.main(["study", "fetch", "--out", "runs"]) == 0
    assert asked == [(Path("runs"), ()), (Path("runs"), ("fetch",))]
    assert capsys.readouterr().out == 2 * "THE TABLE\n\nruns/study/table.md\nruns/study/study.png\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("study fetsh", "Perhaps you meant fetch?"),
        ("study zebra", "`headstart list` shows"),
        ("study fetch --out nowhere", "nowhere: there is no such directory"),
        ("study memory", "runs: has no runs of memory. Run `headstart run memory` first."),
        ("study", "runs/fetch: holds no finished run (unfinished: bc/seed0)"),
        ("study fetch --arms bc", "--arms"),
    ],
)
def test_nothing_to_study(command: str, told: str, here: Path, capsys):
    (here / "runs/fetch/bc/seed0").mkdir(parents=True)
    assert cli.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert told in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert out == ""
    assert files_below(here) == ["runs", *(f"runs/fetch{end}" for end in ("", "/bc", "/bc/seed0"))]


# ---- exit codes ----
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("run doorkey", "Perhaps you meant door_key?"),
        ("run DoorKey", "Perhaps you meant door_key?"),
        ("run zebra", "`headstart list` shows"),
        ("run fetch --arms", "--arms: no arm is given. Give one or more"),
        ("watch fetch --seed -1", "Give one, as in --seed 0."),
        ("run MiniGrid-DoorKey-8x8-v0", "Perhaps you meant `headstart run door_key`?"),
        ("run BabyAI-GoToLocal-v0", "snippet of the README"),
        ("run CartPole-v1", "`headstart check CartPole-v1` says whether it can be used"),
        ("watch my_envs:make_env", "`headstart check my_envs:make_env` says whether"),
        ("run", "ENV"),
        ("run door_key --arms reflekt", "Perhaps you meant reflect?"),
        ("run door_key --arms bc zebra", "Its arms are scratch, bc,"),
        ("run door_key --arm bc", "--arms"),
        ("run door_key --seed -1", "--seed"),
        ("run door_key --seed 4294967296", "--seed: 4294967296"),
        ("run door_key --seed one", "--seed"),
        ("run door_key --seed", "--seed"),
        ("run door_key --processes 0", "--processes 0"),
        ("run door_key --demos 0", "--demos 0"),
        ("watch door_key --seed -1", "--seed"),
        ("watch door_key --demos 4", "headstart run door_key --demos 4 --arms reflect"),
        ("watch door_key --to .", "a GIF is written"),
        ("run door_key --demos 8193", "has 8192 training levels"),
        ("run door_key --rl-steps 0", "--no-rl"),
        ("run door_key --rl-steps 9 --no-rl", "exclude each other"),
        ("run door_key --device tpu", "--device"),
        ("run door_key --out file", "file/door_key cannot be written to: not a directory"),
        ("run door_key --out /proc/nowhere", "/proc/nowhere/door_key cannot be written to"),
        ("runn door_key", "Perhaps you meant run?"),
        ("list --jsn", "--json"),
        ("check", "TARGET"),
        ("check Zebra-v0", "Zebra-v0"),
        ("--zebra", "--zebra"),
    ],
)
def test_usage_errors(command: str, told: str, here: Path, asked: list, capsys):
    (here / "file").touch()
    assert cli.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert told in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert len(err.splitlines()) < 24, "more than a screen"
    assert out == ""
    assert asked == []
    assert files_below(here.parent) == ["work", "work/file"]


def test_cuda_where_there_is_none(here: Path, asked: list, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(pipeline.torch.cuda, "is_available", lambda: False)
    assert cli.main(["run", "door_key", "--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err
    assert cli.main(["run", "door_key"]) == 0
    assert "device: cpu, because PyTorch finds no CUDA device" in capsys.readouterr().out
    assert cli.main(["run", "door_key", "--compile"]) == 0
    assert "--compile: nothing is compiled" in capsys.readouterr().out


def test_what_is_chosen_is_said_and_done(here: Path, asked: list, monkeypatch: pytest.MonkeyPatch, capsys):
    choice = devices.Choice(devices.STACKED, " (NVIDIA X1), the fastest by a trial")
    monkeypatch.setattr(devices, "choose", lambda *arguments, **options: choice)
    assert cli.main(["run", "door_key", "--seed", "0", "1", "--compile"]) == 0
    assert "device: cuda (NVIDIA X1), the fastest by a trial\n" in capsys.readouterr().out
    assert (asked[0]["device"], asked[0]["together"], asked[0]["compiled"]) == ("cuda", True, True)


@pytest.fixture
def tiny(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few levels that what comes before the first fit takes no time."""
    experiment = dataclasses.replace(door_key.EXPERIMENT, train_levels=8, validation_levels=4, test_levels=4)
    monkeypatch.setattr(door_key, "EXPERIMENT", experiment)


def test_damaged_demonstrations(here: Path, tiny: None, capsys):
    demos = here / "runs/door_key/demos/seed0/demos.npz"
    storage.save_bytes(demos, b"whole", kind="headstart demonstrations", schema=1)
    demos.write_bytes(b"whOle")
    assert cli.main(["run", "door_key", "--arms", "bc", "--no-rl"]) == 3
    err = capsys.readouterr().err
    assert "demos.npz" in err
    assert "Traceback" not in err
    assert demos.read_bytes() == b"whOle"
    assert files_below(here / "runs/door_key") == [
        "demos",
        *(f"demos/seed0{end}" for end in ("", "/demos.npz", "/manifest.json")),
    ]


def test_somebody_else_writes(here: Path, tiny: None, capsys):
    directory = here / "runs/door_key/demos/seed0"
    code = f"from headstart.envs import storage\nwith storage.lock({str(directory)!r}): print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        assert cli.main(["run", "door_key", "--arms", "bc", "--no-rl"]) == 75
        other.stdin.write("\n")
    err = capsys.readouterr().err
    assert f"process {other.pid}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"), [(DataError, 3), (EnvironmentFailed, 4), (Diverged, 5), (Busy, 75), (HeadstartError, 1)]
)
def test_errors_of_the_run(error: type[HeadstartError], code: int, here: Path, monkeypatch, capsys):
    raising(monkeypatch, error("this, there; do that"))
    assert cli.main(["run", "door_key"]) == code
    assert capsys.readouterr().err.endswith("headstart: this, there; do that\n")


def test_debug_shows_where(here: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    raising(monkeypatch, DataError("this, there; do that"))
    assert cli.main(["run", "door_key"]) == 3
    assert capsys.readouterr().err == "headstart: this, there; do that\n"
    assert cli.main(["run", "door_key", "--debug"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in run_all" in err
    assert err.endswith("headstart: this, there; do that\n")


def test_a_bug_asks_to_be_reported(here: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    raising(monkeypatch, ZeroDivisionError("none left"))
    assert cli.main(["run", "door_key"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "ZeroDivisionError: none left). Please report it" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, "/a/b: Permission denied. Check"),
        (PermissionError(errno.EACCES, "Permission denied", b"/a/b"), 2, "/a/b: Permission denied. Check"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full"),
        (BrokenProcessPool("died"), 4, "--processes"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where it stopped"),
    ],
)
def test_what_the_system_does(error: BaseException, code: int, told: str, here: Path, monkeypatch, capsys):
    raising(monkeypatch, error)
    assert cli.main(["run", "door_key"]) == code
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_fresh_would_not_go_on_but_start_over(here: Path, monkeypatch, capsys):
    for error in (KeyboardInterrupt(), BrokenProcessPool("died"), OSError(errno.ENOSPC, "No space left on device")):
        raising(monkeypatch, error)
        assert cli.main(["run", "door_key", "--fresh"]) != 0
        assert "; the same command without --fresh goes on where it stopped." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "headstart: interrupted.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "headstart: the disk is full. Free some space.\n"),
    ],
)
@pytest.mark.parametrize("verb", ["check", "doctor"])
def test_only_a_run_goes_on(verb: str, error: BaseException, code: int, told: str, monkeypatch, capsys):
    def stopped(*arguments: Any) -> int:
        raise error

    monkeypatch.setattr(check, "check", stopped)
    monkeypatch.setattr(doctor, "doctor", stopped)
    assert cli.main([verb, *(["CartPole-v1"] if verb == "check" else [])]) == code
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads(unbuffered: str):
    command = [HEADSTART, "list", "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_broken_pipe_inside_is_no_reader_gone(here: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    raising(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert cli.main(["run", "door_key"]) == 1
    assert "BrokenPipeError" in capsys.readouterr().err


# ---- being stopped ----
WORKERS = """
import os, sys, time
from headstart.experiments import pool
from tqdm import tqdm

def run_arm(run):  # at module level: also in the processes that multiprocessing spawns
    bar = tqdm(disable=False, file=open(os.devnull, "w"))
    run.directory.mkdir(parents=True)
    (run.directory / "pid").write_text(str(os.getpid()))
    time.sleep(60)

pool.run_arm = run_arm
pool.bank = lambda *arguments: None
pool.demonstrate = lambda run: None

if __name__ == "__main__":
    from headstart.experiments.cli import run_script
    run_script("door_key")
"""

STUCK = """
import sys, time
from headstart.experiments import cli

def stuck(self):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)

cli.List.__call__ = stuck
sys.exit(cli.main(["list"]))
"""


def children_of(pid: int) -> set[int]:
    return {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }


@contextlib.contextmanager
def started(code: str, directory: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    script = directory / "script.py"
    script.write_text(code)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(script), *flags]
    with subprocess.Popen(command, cwd=directory, start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP))]
)
def test_signals_leave_no_process_behind(number: signal.Signals, here: Path):
    # Ctrl-C and a terminal that is closed reach all of its processes
    send: Callable[[int, int], None] = os.kill if number == signal.SIGTERM else os.killpg
    with started(WORKERS, here, "--arms", "bc", "iwm", "--processes", "2") as process:
        pids: list[str] = []
        while (len(pids) < 2 or not all(pids)) and process.poll() is None:
            time.sleep(0.1)
            pids = [path.read_text() for path in here.glob("runs/door_key/*/seed0/pid")]
        assert process.poll() is None, process.communicate()[1]
        children = children_of(process.pid)
        assert {int(pid) for pid in pids} < children
        begun = time.monotonic()
        send(process.pid, number)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - begun < 5
    assert process.returncode == 128 + number
    assert err.endswith("headstart: interrupted; the same command goes on where it stopped.\n")
    assert "Traceback" not in err
    begun = time.monotonic()  # multiprocessing's resource tracker ends by itself, a moment later
    while (left := [child for child in children if Path(f"/proc/{child}").exists()]) and time.monotonic() < begun + 5:
        time.sleep(0.1)
    assert left == []


def test_a_closed_terminal_does_not_end_the_resource_tracker():
    code = """
import os, signal, time
from multiprocessing import resource_tracker
from headstart.experiments import cli

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs these tests with nohup has it ignored
cli._start_resource_tracker()
os.kill(resource_tracker._resource_tracker._pid, signal.SIGHUP)
time.sleep(0.5)
print(os.waitpid(resource_tracker._resource_tracker._pid, os.WNOHANG))
os.kill(os.getpid(), signal.SIGHUP)  # is not ignored here
"""
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(0, 0)\n", "")
    assert done.returncode == -signal.SIGHUP


def test_a_killed_command_leaves_no_process_behind(here: Path):
    with started(WORKERS, here, "--arms", "bc", "--processes", "1") as process:
        while not (pids := list(here.glob("runs/door_key/*/seed0/pid"))) and process.poll() is None:
            time.sleep(0.1)
        assert pids, process.communicate()[1]
        children = children_of(process.pid)
        process.kill()
        until = time.monotonic() + 30
        while (left := [c for c in children if Path(f"/proc/{c}").exists()]) and time.monotonic() < until:
            time.sleep(0.1)
        assert left == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_does_not_wait(number: signal.Signals, tmp_path: Path):
    with started(STUCK, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "ending\n"
        process.send_signal(number)
        assert process.wait(5) == 128 + number


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch):
    """A shell lets its background jobs ignore Ctrl-C."""
    seen = []
    monkeypatch.setattr(cli.List, "__call__", lambda self: seen.append(signal.getsignal(signal.SIGINT)) or 0)
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert cli.main(["list"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert cli.main(["list"]) == 0
    assert seen[0] == signal.SIG_IGN
    assert seen[1] not in (signal.SIG_IGN, before)
    assert signal.getsignal(signal.SIGINT) == before


# ---- anything at all ----
GOOD = {
    "--arms": ["bc", "bc reflect", "scratch iwm bc_long", "bc bc", ""],
    "--seed": ["0", "0 1 2", "5 5"],
    "--demos": ["1", "8", "256"],
    "--rl-steps": ["1", "300000"],
    "--device": ["auto", "cpu"],
    "--out": ["runs", "a/b", "é", "\udcff", "-dash"],
    "--processes": ["1", "4"],
    **{flag: [""] for flag in ("--no-rl", "--fresh", "--dry-run", "--debug")},
}
BAD = {
    "--arms": ["BC", "zebra", "bc ''"],
    "--seed": ["-1", "99999999999", "1.5", "nan", ""],
    "--demos": ["0", "-8", "half", "1e9", "100000", ""],
    "--rl-steps": ["0", "-5", "1e5", "many", ""],
    "--device": ["gpu", ""],
    "--out": ["file", "file/below", "/proc/nowhere", "x" * 300, ""],
    "--processes": ["0", "-1", "two", ""],
    **{flag: [""] for flag in ("--json", "--help", "-h", "--version", "--")},
}


def flags_of(values: dict[str, list[str]]) -> st.SearchStrategy[list[str]]:
    return st.sampled_from([[flag, *line.split()] for flag in values for line in values[flag]])


ANYTHING = st.text(st.characters(exclude_characters="\0"), max_size=12).filter(lambda word: "tyro" not in word)
WORDS = st.one_of(
    flags_of(GOOD),
    flags_of(BAD),
    st.sampled_from([*cli.VERBS, *ENVIRONMENTS, "doorkey", "MiniGrid-DoorKey-8x8-v0"]).map(lambda word: [word]),
    ANYTHING.map(lambda word: [word]),
    ANYTHING.map(lambda word: [f"--{word}"]),
)
START = st.just([["run"], ["door_key"]])
VALID = st.tuples(START, st.lists(flags_of(GOOD), max_size=4))
NEARLY_VALID = st.tuples(START, st.lists(st.one_of(flags_of(GOOD), flags_of(BAD)), max_size=4))
COMMANDS = st.one_of(VALID, NEARLY_VALID, st.tuples(st.lists(WORDS, max_size=6), st.just([]))).map(
    lambda halves: [word for half in halves for part in half for word in part]
)


def check_command(argv: list[str], asked: list, here: Path) -> None:
    asked.clear()
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2))  # a terminal that can show very little
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(argv)
    err.seek(0)
    message = err.read()
    assert code in (0, 2)
    assert bool(message) == (code == 2), message
    assert "--debug" in argv or "Traceback" not in message
    if "--dry-run" in argv or code == 2:
        assert asked == []
    for call in asked:  # what reaches the pipeline is in order
        assert call["experiment"].arms.keys() <= door_key.EXPERIMENT.arms.keys()
        assert call["seeds"]
        assert call["processes"] > 0
        assert call["experiment"].rl.steps > 0
    assert files_below(here.parent) == ["work", "work/file"]


@pytest.fixture
def harmless(here: Path, asked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` imports what it is told to, and both verbs have tests of their own."""
    (here / "file").touch()
    monkeypatch.setattr(check, "check", lambda target, horizon=None: 0)
    monkeypatch.setattr(doctor, "doctor", lambda out: 0)


EXAMPLES = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=200, **EXAMPLES)
@given(argv=COMMANDS)
def test_any_command_line(argv: list[str], harmless: None, asked: list, here: Path):
    check_command(argv, asked, here)


@pytest.mark.slow
@settings(max_examples=10_000, **EXAMPLES)
@given(argv=COMMANDS)
def test_ten_thousand_command_lines(argv: list[str], harmless: None, asked: list, here: Path):
    check_command(argv, asked, here)
