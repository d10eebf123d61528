"""The command line: `headstart run ENV`, `study`, `list`, `check TARGET`, `doctor`.

A verb is a frozen dataclass: its fields are the flags, their docstrings the help, and calling it does the job and
returns the exit code. What takes long to import (torch, numba, gymnasium) is imported by the verb that needs it, so
that `--help` answers at once. What the exit codes mean is said there, in DESCRIPTION.
"""

import contextlib
import dataclasses
import difflib
import errno
import json
import multiprocessing
import os
import re
import select
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro
from tyro.conf import Positional, arg

from headstart.envs.errors import HeadstartError, UsageError
from headstart.envs.registry import ENVIRONMENTS, FRAME_BYTES, Environment

if TYPE_CHECKING:
    from headstart.experiments.experiment import Experiment
    from headstart.experiments.pipeline import Run as ArmRun

__all__ = ["main", "run_script"]

Flag = Annotated[bool, arg(help_behavior_hint="")]  # "(default: False)" tells nobody anything
SEED_LIMIT = 2**32  # numpy's old generator, which Stable-Baselines3 seeds, takes no larger ones
IDS = ("MiniGrid-", "BabyAI-", "Headstart-")
OWN = re.compile(r"[\w./:-]+-v\d+|[\w.]+:\w+")  # an id of Gymnasium, or module:function
# Names of arms_around, which takes too long to import; a test compares.
MAIN_ARMS = ("scratch", "bc", "bc_long", "iwm", "reflect")
OTHER_ARMS = (
    *("reflect_exhaustive", "bc_plain", "reflect_plain", "bc_auxiliary", "reflect_rehearsal"),
    *("iwm_joint", "inverse", "preference", "star"),
    *("noop", "random_judge", "self_label", "iwm_reflect", "reflect_rationale", "reflect_shuffled", "dagger"),
    *("iwm_matched", "reflect_matched", "inverse_matched", "preference_matched", "star_matched", "noop_matched"),
    *("random_judge_matched", "self_label_matched", "iwm_reflect_matched", "reflect_rationale_matched"),
    *("reflect_shuffled_matched", "dagger_matched"),
)
MEMORYLESS_ARMS = ("bc_memoryless", "reflect_memoryless")
WITHOUT_MEMORY = ("fetch",)  # environments whose policies have none that these arms could lack


# ---- verbs ----
@dataclass(frozen=True, kw_only=True)
class Run:
    """Warm-start policies for an environment, fine-tune them with PPO and compare.

    The same command again goes on where the last one stopped.
    """

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """Name of the environment, as `headstart list` shows it."""
    arms: Annotated[
        tuple[str, ...] | None,
        arg(metavar="ARM [ARM ...]", help_behavior_hint=f"(default: {' '.join(MAIN_ARMS)})"),
    ] = None
    """Arms of the experiment to run, as `headstart list` names them, or all."""
    seed: Annotated[tuple[int, ...], arg(metavar="K [K ...]")] = (0,)
    """Seeds to run, each with demonstrations of its own."""
    demos: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: what the experiment says)")] = None
    """Demonstrations to learn from; another number than the experiment's has its results in ENV-N, beside ENV."""
    no_rl: Flag = False
    """Stop after the warm starts, before any reward."""
    rl_steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: what the experiment says)")] = None
    """Environment steps of PPO."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained; auto tries what there is and takes the fastest."""
    compile: Flag = False
    """Compile what is fitted as one on CUDA, all seeds of an arm, by torch.compile: a minute for each stage."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """Directory of the results."""
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one for each core)")] = None
    """Number of runs at a time."""
    fresh: Flag = False
    """Delete what earlier runs of these arms and seeds have left, and start over."""
    dry_run: Flag = False
    """Print the configuration, the stages and what they cost, and write nothing."""
    debug: Flag = False
    """Show the traceback of an error."""

    def __call__(self) -> int:
        self._check()
        experiment = _experiment(self.env)  # imports torch: what is plainly wrong has been refused before

        from headstart.envs.processes import available_cores
        from headstart.experiments import devices, pipeline, pool
        from headstart.experiments.doctor import check_writable
        from headstart.experiments.experiment import plan

        devices.check(self.device)
        experiment = self._changed(experiment)
        seeds, processes = tuple(dict.fromkeys(self.seed)), self.processes or available_cores()
        directory = self.out / experiment.name
        check_writable(directory, f"--out {self.out}")
        runs = [pipeline.Run(experiment, name, seed, self.out) for seed in seeds for name in experiment.arms]

        text = [plan(experiment, seeds, processes), f"results: {directory}", *self._finished(experiment, runs)]
        if self.dry_run:
            decided = {"out": str(self.out), "seeds": seeds, "device": self.device, "processes": processes}
            print(json.dumps({**decided, "fresh": self.fresh, "experiment": _as_json(experiment)}, indent=2))
            print("", *text, "dry run: nothing was run, nothing was written", sep="\n")
            return 0
        print(*text, sep="\n", flush=True)
        _start_resource_tracker()
        choice = devices.choose(self.device, runs, processes, fresh=self.fresh)
        print(f"device: {choice.way.device}{choice.why}", flush=True)
        if self.compile and not choice.way.together:
            print("--compile: nothing is compiled, since seeds are fitted as one only on CUDA, where there are several")
        pool.run_all(
            experiment,
            seeds,
            self.out,
            device=choice.way.device,
            processes=processes,
            fresh=self.fresh,
            together=choice.way.together,
            compiled=self.compile,
        )

        from headstart.experiments.report import write_report

        report = write_report(directory)
        print("", report.text.rstrip(), "", report.table, report.picture, _tensorboard(directory), CURVES, sep="\n")
        return 0

    def _check(self) -> None:
        _check_seeds(self.seed)
        if self.arms == ():
            raise UsageError("--arms: no arm is given. Give one or more, as in --arms bc reflect, or all.")
        if self.processes is not None and self.processes < 1:
            raise UsageError(f"--processes {self.processes}: at least one is needed.")
        if self.rl_steps is not None and self.rl_steps < 1:
            raise UsageError(f"--rl-steps {self.rl_steps}: at least one is needed. Use --no-rl to leave PPO out.")
        if self.rl_steps is not None and self.no_rl:
            raise UsageError("--rl-steps and --no-rl exclude each other: give one of them.")

    def _changed(self, experiment: "Experiment") -> "Experiment":
        """A copy of the experiment with what the flags change."""
        chosen = self.arms or ()
        for name in chosen:
            if name not in experiment.arms and name != "all":
                raise UsageError(
                    f"--arms: {experiment.name} has no arm {name!r}.{_meant(name, experiment.arms)} "
                    f"Its arms are {', '.join(experiment.arms)}, or all."
                )
        # in the experiment's order, so that the order of the flags changes nothing
        arms = {
            name: arm
            for name, arm in experiment.arms.items()
            if name in chosen or "all" in chosen or (arm.main and not chosen)
        }
        if self.no_rl:
            arms = {name: dataclasses.replace(arm, rl=False) for name, arm in arms.items()}
        rl = experiment.rl if self.rl_steps is None else dataclasses.replace(experiment.rl, steps=self.rl_steps)
        return _with_demos(dataclasses.replace(experiment, arms=arms, rl=rl), self.demos)

    def _finished(self, experiment: "Experiment", runs: "Sequence[ArmRun]") -> list[str]:
        """A line about runs that will not be repeated. Refused are runs that were begun with another configuration, and
        others that these could not share a table with.
        """
        from headstart.envs import storage
        from headstart.experiments.evidence import steps_of_rl
        from headstart.experiments.pipeline import checked_config

        others = steps_of_rl(self.out / experiment.name, without=[run.directory for run in runs])
        planned = max((run.rl.steps for run in runs if experiment.arms[run.arm].rl), default=None)
        for path, steps in others.items():
            if planned not in (None, steps):
                raise UsageError(
                    f"{path}: has {steps} steps of PPO, and these runs would have {planned}: they could not share a "
                    f"table. Give --rl-steps {steps}, or another --out."
                )
        if self.fresh:
            return []
        finished = 0
        for run in runs:
            checked_config(run)
            names = ["summary.json"] + ["policy.safetensors"] * experiment.arms[run.arm].rl
            finished += all(storage.exists(run.directory / name) for name in names)
        if not finished:
            return []
        return [f"{finished} of {len(runs)} runs are finished: they are checked and kept (--fresh repeats them)"]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Watch a trained policy: episodes on test levels as a GIF, with what was asked, done and why below the picture."""

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """Name of the environment, as `headstart list` shows it."""
    arm: Annotated[str, arg(metavar="ARM")] = "reflect"
    """Whose policy: after PPO if the arm has had any, otherwise its warm start."""
    seed: Annotated[int, arg(metavar="K")] = 0
    """Seed of the run."""
    demos: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: what the experiment says)")] = None
    """Demonstrations that it has learned from."""
    episodes: Annotated[int, arg(metavar="N")] = 3
    """Number of episodes."""
    greedy: Flag = False
    """Always take the likeliest action."""
    to: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: watch.gif in the run)")] = None
    """Where the GIF is written."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """Directory of the results."""
    debug: Flag = False
    """Show the traceback of an error."""

    def __call__(self) -> int:
        _check_seeds((self.seed,), "Give one, as in --seed 0.")
        experiment = _with_demos(_experiment(self.env), self.demos)
        if self.arm not in experiment.arms:
            raise UsageError(
                f"--arm: {experiment.name} has no arm {self.arm!r}.{_meant(self.arm, experiment.arms)} "
                f"Its arms are {', '.join(experiment.arms)}."
            )

        from headstart.experiments.pipeline import Run as ArmRun
        from headstart.experiments.watch import watch

        run = ArmRun(experiment, self.arm, self.seed, self.out)
        path = self.to or run.directory / "watch.gif"
        played = watch(run, path, episodes=self.episodes, greedy=self.greedy)
        solved = sum(one.success for one in played)
        print(f"{solved} of {len(played)} solved, in {', '.join(str(len(one.actions)) for one in played)} steps")
        print(path)
        return 0


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compare the arms over all environments that have finished runs, and with what was claimed beforehand."""

    env: Annotated[Positional[tuple[str, ...]], arg(metavar="[ENV ...]", help_behavior_hint="(default: all)")] = ()
    """Names of environments."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """Directory of the results."""
    debug: Flag = False
    """Show the traceback of an error."""

    def __call__(self) -> int:
        for name in self.env:
            if name not in ENVIRONMENTS and not (self.out / name).is_dir():
                raise UsageError(_no_environment(name))

        from headstart.experiments.doctor import check_writable
        from headstart.experiments.study import study_directories, write_study

        study_directories(self.out, self.env)  # what is not there is said before anything is made
        check_writable(self.out / "study", f"--out {self.out}")
        written = write_study(self.out, self.env)
        print(written.text.rstrip(), "", written.table, *([written.picture] if written.picture else []), sep="\n")
        return 0


@dataclass(frozen=True, kw_only=True)
class List:
    """List the environments that have an experiment: what is observed, how well the expert and chance do, variants;
    and the arms that can be run there.
    """

    json: Flag = False
    """Print JSON."""

    def __call__(self) -> int:
        rows = list(ENVIRONMENTS.values())
        print(json.dumps([_facts(row) for row in rows], indent=2) if self.json else f"{_table(rows)}\n\n{_arms()}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Probe an environment of your own: spaces, determinism, how it can be forked, cost of a branch."""

    target: Annotated[Positional[str], arg(metavar="TARGET")]
    """module:function that makes an environment, an id that gymnasium.make knows, or a name of `headstart list`."""
    horizon: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: to its end)")] = None
    """Most steps of an episode that is played."""
    debug: Flag = False
    """Show the traceback of an error."""

    def __call__(self) -> int:
        from headstart.experiments import check

        row = ENVIRONMENTS.get(self.target)
        return check.check(row.id if row else self.target, self.horizon)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check this installation: packages, devices, caches, disk, and the engine against minigrid."""

    out: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """Directory of the results."""
    debug: Flag = False
    """Show the traceback of an error."""

    def __call__(self) -> int:
        from headstart.experiments import doctor

        return doctor.doctor(self.out)


VERBS = {"run": Run, "watch": Watch, "study": Study, "list": List, "check": Check, "doctor": Doctor}
DESCRIPTION = """Warm starts for reinforcement learning: agents learn from the futures of their own actions.

Start with `headstart run multi_room`; `headstart VERB --help` explains a verb, `headstart --version` names the version.

Exit codes: 0 done, 1 a bug, 2 usage, 3 invalid data, 4 an environment or the installation failed, 5 diverged,
75 somebody else writes there, 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM, 141 nobody reads the output.
"""


# ---- the console entry point ----
def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments (default: those of the command) say; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # file names may hold what the terminal cannot show
        getattr(stream, "reconfigure", lambda errors: None)(errors="backslashreplace")
    with _explained(debug="--debug" in argv, resumed_by=_resumed_by(argv)) as failure, _signals_interrupt():
        code = _obey(argv)
        print(end="", flush=True)  # here, where it can still be explained if it fails
        return code
    return failure.code


def run_script(name: str) -> NoReturn:
    """What `python experiments/NAME.py [flags]` does: the same as `headstart run NAME [flags]`."""
    sys.exit(main(["run", name, *sys.argv[1:]]))


def _resumed_by(argv: list[str]) -> str:
    """The command that goes on where this one was stopped; "" where nothing does."""
    if argv[:1] != ["run"]:
        return ""
    return "the same command without --fresh" if "--fresh" in argv else "the same command"


def _obey(argv: list[str]) -> int:
    if argv == ["--version"]:
        print(f"headstart {version('headstart')}")
        return 0
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UsageError(f"there is no verb {argv[0]!r}.{_meant(argv[0], VERBS)} The verbs are {', '.join(VERBS)}.")
    try:
        verb = tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="headstart",
            description=DESCRIPTION,
            args=argv or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as parsed:  # it has printed help, or what is wrong
        return int(parsed.code or 0)
    return verb()


# ---- how it ends when it does not end well ----
class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP raise Interrupted, so that locks and worker processes are let go in order.

    The second signal does not wait for them: everything on disk is whole at any time.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker: its parent is the one that answers
            os._exit(128 + number)
        for kept in handlers:
            signal.signal(kept, leave)
        raise Interrupted(number)

    def leave(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + number)

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
    try:
        for number in handlers:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start_resource_tracker() -> None:
    """Start multiprocessing's, which ignores Ctrl-C and SIGTERM, where it inherits that SIGHUP is blocked.

    A terminal that is closed would end it otherwise, before the processes that tell it what they have let go.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Failure:
    """Exit code of a command that raised."""

    code: int = 1


@contextlib.contextmanager
def _explained(*, debug: bool, resumed_by: str) -> Iterator[_Failure]:
    """Turn an exception into a message on stderr and an exit code; ``resumed_by``: see `_resumed_by`."""
    failure = _Failure()
    try:
        yield failure
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            failure.code = 128 + signal.SIGPIPE
            return
        failure.code, message = _verdict(error, resumed_by)
        if debug or failure.code == 1:
            traceback.print_exception(error)
        print(f"headstart: {message}", file=sys.stderr)


def _verdict(error: BaseException, resumed_by: str) -> tuple[int, str]:
    """Exit code, and what to tell the user."""
    end = f"; {resumed_by} goes on where it stopped." if resumed_by else "."
    match error:
        case HeadstartError():
            return error.exit_code, str(error)
        case KeyboardInterrupt():
            return getattr(error, "exit_code", 130), f"interrupted{end}"
        case OSError(filename=str() | bytes() | os.PathLike()):
            path, why = os.fsdecode(error.filename), error.strerror or str(error)
            return 2, f"{path}: {why}. Check the path, its permissions and the space on its disk."
        case OSError(errno=errno.ENOSPC):
            return 2, f"the disk is full. Free some space{end}"
        case BrokenExecutor():
            return 4, (
                "a worker process was killed, perhaps because memory ran out"
                f"{end} With a smaller --processes it needs less memory."
            )
        case _:
            return 1, (
                f"this is a bug in headstart ({type(error).__name__}: {error}). Please report it with the lines "
                "above, the command, and what `headstart doctor` prints."
            )


def _reader_has_gone() -> bool:
    """Whether nobody reads the output any more, as in `headstart list | head -1`; what is left is thrown away."""
    output = select.poll()
    for number in (1, 2):
        output.register(number, 0)  # an error is reported whatever is asked for
    gone = [number for number, event in output.poll(0) if event & select.POLLERR]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(gone)


# ---- parts of the verbs ----
def _check_seeds(seeds: Sequence[int], meant: str = "Give one or more, as in --seed 0 1 2.") -> None:
    wrong = [seed for seed in seeds if not 0 <= seed < SEED_LIMIT]
    if wrong or not seeds:
        given = f"{wrong[0]} is not between 0 and {SEED_LIMIT - 1}" if wrong else "no seed is given"
        raise UsageError(f"--seed: {given}. {meant}")


def _with_demos(experiment: "Experiment", demos: int | None) -> "Experiment":
    """The experiment with another number of demonstrations, and a name of its own: it shares neither directory nor
    table with the usual number.
    """
    if demos in (None, experiment.demos):
        return experiment
    if not 1 <= demos <= experiment.train_levels:
        raise UsageError(
            f"--demos {demos}: {experiment.name} has {experiment.train_levels} training levels, and each is "
            "demonstrated at most once. Give at least one, and not more."
        )
    return dataclasses.replace(experiment, name=f"{experiment.name}-{demos}", demos=demos)


def _experiment(name: str) -> "Experiment":
    if name in ENVIRONMENTS:
        from headstart.experiments.experiment import experiment_of

        return experiment_of(name)
    names = ", ".join(ENVIRONMENTS)
    if name.startswith(IDS):
        same = [row.name for row in ENVIRONMENTS.values() if name in (row.id, *(variant.id for variant in row.ood))]
        meant = f" Perhaps you meant `headstart run {same[0]}`?" if same else ""
        raise UsageError(
            f"{name} is an id, and `headstart run` takes the name of an experiment: {names}.{meant} "
            "Ids of MiniGrid and BabyAI work in Python: give yours to the snippet of the README."
        )
    if OWN.fullmatch(name):
        raise UsageError(
            f"{name} has no experiment, and `headstart run` takes the name of one: {names}. "
            f"`headstart check {name}` says whether it can be used and how, with `demonstrate`, as in the README's "
            "example of your own environment."
        )
    raise UsageError(_no_environment(name))


def _no_environment(name: str) -> str:
    names = ", ".join(ENVIRONMENTS)
    return (
        f"there is no environment {name!r}.{_meant(name, ENVIRONMENTS)} `headstart list` shows what there is: {names}."
    )


def _meant(word: str, known: Iterable[str]) -> str:
    plain = {name.replace("_", ""): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", "").replace("-", ""), plain, 1)
    return f" Perhaps you meant {plain[close[0]]}?" if close else ""


def _as_json(experiment: "Experiment") -> dict[str, Any]:
    """All settings, with the class that says what an arm's settings are for."""
    value = dataclasses.asdict(experiment)
    for name, arm in experiment.arms.items():
        if arm.learner is not None:
            value["arms"][name]["learner"] = {"class": type(arm.learner).__name__, **value["arms"][name]["learner"]}
    return value


CURVES = "http://localhost:6006/?tagFilter=eval&smoothing=0&runColorGroup=regex:(.*)/seed#timeseries"
"""Where TensorBoard then shows success and KL over steps, a colour for each arm."""


def _tensorboard(directory: Path) -> str:
    """The command that shows the curves, as it can be typed here: the environment may not be activated."""
    program = Path(sys.executable).parent / "tensorboard"
    found = shutil.which("tensorboard")
    if found is None and program.exists():
        return shlex.join([os.path.relpath(program), "--logdir", str(directory)])
    return shlex.join(["tensorboard", "--logdir", str(directory)])


COLUMNS: dict[str, Callable[[Environment], str]] = {
    "name": lambda row: row.name,
    "study": lambda row: "yes" if row.study else "no",
    "demos": lambda row: str(row.budget),
    "horizon": lambda row: str(row.horizon),
    "history": lambda row: str(row.history),
    "frames": lambda row: f"{row.history + 1} x {FRAME_BYTES}",
    "words": lambda row: str(row.mission_words),
    "actions": lambda row: str(row.n_actions),
    "expert": lambda row: row.expert,
    "steps": lambda row: f"{row.expert_length:g}",
    "success": lambda row: f"{row.expert_success:.1%}",
    "random": lambda row: f"{row.random_success:.1%}",
}


def _table(rows: list[Environment]) -> str:
    """A line of aligned columns for each environment, and below it its id, what it stands for and its variants."""
    cells = [list(COLUMNS), *([text(row) for text in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    text = [head]
    for row, line in zip(rows, lines, strict=True):
        text += [line, f"    {row.id}: {row.stands_for}"]
        text += [f"    variant {variant.id}: {variant.differs}" for variant in row.ood]
    return "\n".join(text)


def _facts(row: Environment) -> dict[str, Any]:
    """What `list --json` says of an environment."""
    other = OTHER_ARMS if row.name in WITHOUT_MEMORY else OTHER_ARMS + MEMORYLESS_ARMS
    observed = {"frames": row.history + 1, "frame_bytes": FRAME_BYTES}
    return {**dataclasses.asdict(row), **observed, "arms": {"main": MAIN_ARMS, "other": other}}


def _arms() -> str:
    """The arms by name, in lines of a terminal."""
    text = [
        f"main arms: {' '.join(MAIN_ARMS)}",
        f"other arms, for --arms: {' '.join(OTHER_ARMS)}",
        f"and where policies have a memory, which they have not in {', '.join(WITHOUT_MEMORY)}: "
        f"{' '.join(MEMORYLESS_ARMS)}",
        "experiments/README.md says what they are.",
    ]
    return "\n".join(line for part in text for line in textwrap.wrap(part, 120, subsequent_indent="    "))
