"""The benchmark's two sides do the same work, and every group of rows runs. Nothing here is timed."""

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from headstart.envs import HeadstartVecEnv, collect_demos, engine, missions
from headstart.envs.banks import import_seeds
from headstart.envs.levels import import_level
from headstart.experiments import bench
from headstart.experiments.bench_imitation import flat_policy
from headstart.models.policy import FrameHistoryExtractor, as_tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

OPTIONS = bench.Options(rounds=1, seconds=0.0)


@pytest.mark.parametrize("env_id", [bench.DOOR_KEY, bench.GO_TO])
def test_python_wrapper_shows_what_the_vec_env_shows(env_id: str):
    theirs = bench.SameObs(gymnasium.make(env_id, disable_env_checker=True), history=3)
    ours = HeadstartVecEnv(import_seeds(env_id, [5]), 1, history=3)
    assert theirs.observation_space == ours.observation_space
    assert theirs.action_space == ours.action_space
    obs, expected = theirs.reset(seed=5)[0], ours.reset()
    rng = np.random.default_rng(0)
    for _ in range(60):
        for name, value in expected.items():
            np.testing.assert_array_equal(obs[name], value[0], err_msg=name)
            assert obs[name].dtype == value.dtype
        action = int(rng.integers(7))
        obs, reward, terminated, truncated, _ = theirs.step(action)
        expected, rewards, dones, infos = ours.step(np.array([action]))
        assert (terminated or truncated) == dones[0]
        assert reward == pytest.approx(rewards[0])
        if dones[0]:
            expected = {name: value[None] for name, value in infos[0]["terminal_observation"].items()}
            break
    for name, value in expected.items():
        np.testing.assert_array_equal(obs[name], value[0], err_msg=name)


@pytest.mark.parametrize("env_id", [bench.DOOR_KEY, bench.PUT_NEXT])
def test_both_sides_branch_the_same_states(env_id: str):
    rows, envs = bench.walked(env_id, 3)
    frame = engine.branch(rows, np.tile(np.arange(7), (3, 1))).frame
    for n, env in enumerate(envs):
        for action in range(7):
            obs = copy.deepcopy(env.unwrapped).step(action)[0]
            np.testing.assert_array_equal(frame[n, action, 0], bench.pack(obs["image"], obs["direction"]))


def test_states_to_branch_are_in_the_middle_of_episodes():
    rows, _ = bench.walked(bench.GO_TO, 6)
    assert (engine.step_count(rows) > 0).any()
    assert not engine.succeeded(rows).any()


def test_both_sides_step_the_same_levels():
    envs = bench.python_envs(bench.GO_TO, 3)
    action = np.random.default_rng(0).integers(7, size=(64, 3))
    ours = bench.EngineSteps(np.stack([import_level(env) for env in envs]), action)
    theirs = bench.PythonSteps(envs, action)
    for _ in range(20):
        assert ours() == theirs() == 3
        for row, env in zip(ours.rows, envs, strict=True):
            obs = env.unwrapped.gen_obs()  # type: ignore[attr-defined]
            np.testing.assert_array_equal(engine.observe(row[None])[0], bench.pack(obs["image"], obs["direction"]))
        assert ours.over.sum() == len(theirs.ended)
        if theirs.ended:
            break


@pytest.mark.parametrize("memory", [0, 3])
def test_every_view_is_the_same_network(memory: int):
    env = HeadstartVecEnv(import_seeds(bench.GO_TO, [0, 1]), 6, history=3)
    obs = env.reset()
    for _ in range(4):
        obs = env.step(np.arange(6))[0]
    shared = FrameHistoryExtractor(env.observation_space, 7, memory).double()  # type: ignore[arg-type]
    every = bench.EveryViewExtractor(env.observation_space, 7, memory).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(shared.film.weight)  # or the mission would change nothing
    every.load_state_dict(shared.state_dict())
    outputs = [network(as_tensors(obs, "cpu")) for network in (shared, every)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for a, b in zip(shared.parameters(), every.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_imitation_trains_the_same_network(tmp_path: Path):
    demos = collect_demos(bench.DOOR_KEY, 2, history=1, cache=tmp_path)
    flat = bench.flat(demos)
    ours, theirs = bench.our_policy(demos, FrameHistoryExtractor), flat_policy(flat, len(missions.VOCABULARY))
    torch.nn.init.normal_(ours.features_extractor.film.weight)  # type: ignore[union-attr,arg-type]
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    with torch.no_grad():
        for a, b in pairs:
            b.copy_(a)
        logits = theirs.get_distribution(torch.as_tensor(flat)).distribution.logits  # type: ignore[union-attr]
        expected = torch.log_softmax(ours.logits(as_tensors(demos.obs, "cpu")), dim=1)
    torch.testing.assert_close(logits, expected)


def test_ppo_sides_have_equal_networks_and_settings(tmp_path: Path):
    ours = bench.our_ppo(bench.DOOR_KEY, tmp_path, 4, 32, 16, levels=8)
    theirs = bench.their_ppo(bench.DOOR_KEY, 2, 32, 16)
    assert [p.shape for p in ours.policy.parameters()] == [p.shape for p in theirs.policy.parameters()]
    assert ours.observation_space == theirs.observation_space
    for name in (
        "batch_size",
        "n_epochs",
        "gamma",
        "gae_lambda",
        "ent_coef",
        "vf_coef",
        "max_grad_norm",
        "lr_schedule",
    ):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine(0.5) == other(0.5)) if callable(mine) else (mine == other), name
    assert ours.n_steps * ours.n_envs == theirs.n_steps * theirs.n_envs
    for model in (ours, theirs):
        before = copy.deepcopy(model.policy.state_dict())
        model.learn(32)
        assert any(not torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize(
    ("group", "sizes", "n_rows"),
    [
        ("branches", {"states": 2, "copies": 2}, 6),
        ("steps", {"sizes": (2, 3)}, 6),
        ("level_import", {"n": 2}, 3),
        ("ppo", {"rollout": 32, "envs": 4, "batch_size": 16, "levels": 8}, 6),
        ("solved", {"seeds": [0, 1], "share": 0.0, "rollout": 64, "levels": 8, "unseen": 3}, 1),
        ("exams", {"levels": 3, "updates": 2}, 1),
        ("linear", {"episodes": 2, "states": 64}, 2),
        ("bank_size", {"env_ids": [bench.DOOR_KEY, bench.GO_TO], "levels": 4}, 2),
    ],
)
def test_every_group_of_rows_runs(group: str, sizes: dict, n_rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "BOSS", bench.GO_TO)  # a fraction of its size
    rows = bench.GROUPS[group](OPTIONS, **sizes)
    assert len(rows) == n_rows
    for row in rows:
        assert row.ours > 0
        assert row.ratio_min <= row.ratio <= row.ratio_max
    assert bench.table(rows).count("\n") == len(rows)


def test_what_is_not_solved_is_said() -> None:
    with pytest.raises(RuntimeError, match="PPO has not solved 110% after 64 steps"):
        bench.solved(OPTIONS, seeds=[0], share=1.1, steps=64, rollout=64, levels=8, unseen=3)


def test_cloning_counts_what_is_processed_and_what_is_represented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Ten updates of 64 rows: a row is one that is processed, and stands for n / distinct samples."""
    demos = collect_demos(bench.DOOR_KEY, 2, history=1, cache=tmp_path)
    n, distinct = len(demos), len(np.unique(bench.flat(demos), axis=0))
    assert distinct < n
    parameters = sum(p.numel() for p in bench.our_policy(demos, FrameHistoryExtractor).parameters())

    @contextmanager
    def theirs(*_: object):
        yield lambda: 10.0, {"parameters": parameters, "versions": "imitation"}

    monkeypatch.setattr(bench, "imitation_python", lambda venv: venv)
    monkeypatch.setattr(bench, "imitation_rate", theirs)
    monkeypatch.setattr(bench, "rate", lambda work, seconds: work())
    processed, represented = bench.bc(OPTIONS, episodes=2, samples=640)[:2]
    assert (processed.name, represented.name) == ("bc_processed_64", "bc_distinct_64")
    assert processed.ours == 640
    assert represented.ours == pytest.approx(640 * n / distinct)
    assert represented.ratio == pytest.approx(64 * n / distinct)
    assert f"a row for {n / distinct:.2f}" in represented.what


def test_there_and_back_is_the_mean_of_both():
    seen = []

    def measure(name: str, value: Iterator[int]):
        def rate() -> float:
            seen.append(name)
            return next(value)

        return rate

    rates = {"a": measure("a", iter((0, 1, 3))), "b": measure("b", iter((0, 10, 20)))}
    assert bench.in_turns(rates, 1, back=True) == {"a": [2.0], "b": [15.0]}
    assert seen == ["a", "b", "a", "b", "b", "a"]


@pytest.mark.skipif(not bench.my_cores(), reason="this system does not let a process choose its cores")
def test_cores_are_given_back():
    before = bench.my_cores()
    with bench.on_cores([min(before)]):
        assert bench.my_cores() == {min(before)}
        with bench.on_cores(before):
            assert bench.my_cores() == before
        assert bench.my_cores() == {min(before)}
    assert bench.my_cores() == before


def test_without_imitation_its_rows_are_left_out_and_said_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def fail(venv: Path) -> Path:
        raise OSError("no network")

    monkeypatch.setattr(bench, "imitation_python", fail)
    assert bench.bc(OPTIONS) == []
    assert "LEFT OUT" in capsys.readouterr().err


def test_rates_are_ratios_of_the_same_round():
    row = bench.compare("n", "i", [10.0, 30.0, 40.0], [10.0, 10.0, 20.0], target=">= 2", unit="u", what="w")
    assert (row.ratio, row.ratio_min, row.ratio_max) == (2.0, 1.0, 3.0)
    assert (row.ours, row.theirs) == (30.0, 10.0)
    assert bench.reached(row) == "reached"
    assert bench.reached(bench.compare("n", "i", [3.0], [1.0], target="<= 2", unit="u", what="w")) == "MISSED"


def test_tidying_up_is_not_work():
    done = []
    assert bench.rate(lambda: 3, 0.0, lambda: done.append(1)) > 0
    assert done == [1]


def test_the_other_side_needs_nothing_of_headstart():
    spec = importlib.util.find_spec("headstart.experiments.bench_imitation")
    assert spec is not None
    assert spec.origin is not None
    assert "headstart." not in "".join(
        line for line in Path(spec.origin).read_text().splitlines() if line.startswith(("import", "from"))
    )
