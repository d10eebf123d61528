"""Episodes with memory: against a naive agent that keeps lists, forks that live alone, ended episodes that stay."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.envs import engine, missions
from headstart.envs import simulator as simulator_module
from headstart.envs.banks import bank, import_seeds
from headstart.envs.errors import UsageError
from headstart.envs.simulator import GridStates, Obs, Simulator, push, uniform_actor

EMPTY = "MiniGrid-Empty-5x5-v0"
DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
GO_TO = "BabyAI-GoToLocal-v0"
SOLUTION = [engine.FORWARD, engine.FORWARD, engine.RIGHT, engine.FORWARD, engine.FORWARD]  # of EMPTY
LEVELS = {env_id: import_seeds(env_id, range(6)) for env_id in (EMPTY, DOOR_KEY, GO_TO)}


def simulator(env_id: str = DOOR_KEY, n: int = 6, *, history: int = 3, horizon: int = 20) -> Simulator:
    return Simulator(GridStates.of(LEVELS[env_id][:n]), history=history, horizon=horizon)


def everything(episodes: Simulator) -> dict[str, Any]:
    """All that an episode is, as copies."""
    memory = {name: getattr(episodes, name).copy() for name in Simulator.REMEMBERED}
    return {**memory, "hash": episodes.state_hash(), "frame": episodes.frame(), **episodes.observe()}


def assert_equal(a: Any, b: Any) -> None:
    np.testing.assert_equal(a, b)


class NaiveAgent:
    """One episode, remembered as lists: what Simulator does for N of them with arrays."""

    def __init__(self, row: np.ndarray, mission: str, env_id: str, history: int, horizon: int):
        self.row, self.history, self.horizon = row[None].copy(), history, horizon
        self.mission = missions.encode(mission, missions.mission_length(env_id))
        self.frames, self.actions = [engine.observe(self.row)[0]], []
        self.terminated = self.truncated = self.revisit = False

    def step(self, action: int) -> None:
        if self.terminated or self.truncated:
            return
        (self.terminated,), (out_of_time,) = engine.step(self.row, np.array([action]))
        frame = engine.observe(self.row)[0]
        self.revisit = any((frame == earlier).all() for earlier in self.frames)
        self.frames.append(frame)
        self.actions.append(action)
        self.truncated = bool(out_of_time) or len(self.actions) >= self.horizon

    def observe(self) -> dict[str, np.ndarray]:
        before = self.history + 1 - len(self.frames)
        frames = [np.zeros(engine.FRAME, np.uint8)] * before + self.frames[-self.history - 1 :]
        actions = [engine.N_ACTIONS] * before + self.actions[len(self.actions) - min(len(self.actions), self.history) :]
        return {
            "frames": np.array(frames),
            "actions": np.array(actions, np.uint8),
            "mission": self.mission,
        }


# ---- memory ----
@pytest.mark.parametrize(("env_id", "history"), [(DOOR_KEY, 0), (DOOR_KEY, 1), (EMPTY, 4), (GO_TO, 3)])
def test_n_episodes_are_n_naive_agents(env_id: str, history: int) -> None:
    levels, horizon = LEVELS[env_id], 25
    episodes = simulator(env_id, history=history, horizon=horizon)
    agents = [NaiveAgent(r, str(m), env_id, history, horizon) for r, m in zip(levels.rows, levels.mission, strict=True)]
    rng = np.random.default_rng(0)
    revisits = set()
    for _ in range(horizon + 2):
        action = rng.choice([engine.LEFT, engine.RIGHT, engine.FORWARD, engine.PICKUP], size=len(episodes))
        live = sum(not (a.terminated or a.truncated) for a in agents)
        assert episodes.step(action) == live
        for agent, a in zip(agents, action.tolist(), strict=True):
            agent.step(a)
        for name, value in episodes.observe().items():
            assert_equal(value, np.array([agent.observe()[name] for agent in agents]))
        assert_equal(episodes.frame(), np.array([agent.frames[-1] for agent in agents]))
        assert_equal(episodes.state_hash(), engine.state_hash(np.concatenate([agent.row for agent in agents])))
        assert episodes.t.tolist() == [len(agent.actions) for agent in agents]
        for flag in ("terminated", "truncated", "revisit"):
            assert getattr(episodes, flag).tolist() == [getattr(agent, flag) for agent in agents], flag
        revisits |= set(episodes.revisit.tolist())
    assert revisits == {False, True}
    assert episodes.done.all()


def test_before_the_episode_there_is_nothing() -> None:
    obs = simulator(GO_TO, history=3).observe()
    assert not obs["frames"][:, :-1].any()
    assert obs["frames"][:, -1].any(axis=1).all()
    assert (obs["actions"] == engine.N_ACTIONS).all()
    assert {name: value.dtype for name, value in obs.items()} == dict.fromkeys(obs, np.uint8)


def test_the_last_action_stands_beside_the_frame_it_was_taken_in() -> None:
    episodes = simulator(EMPTY, 1, history=2)
    first = episodes.frame()
    episodes.step(np.array([engine.RIGHT]))
    second = episodes.frame()
    episodes.step(np.array([engine.FORWARD]))
    obs = episodes.observe()
    assert_equal(obs["frames"][:, :2], np.stack([first, second], axis=1))
    assert obs["actions"].tolist() == [[engine.RIGHT, engine.FORWARD]]


def test_a_revisit_is_an_observation_seen_before_in_this_episode() -> None:
    episodes = simulator(EMPTY, 2)
    seen = []
    for action in (engine.LEFT, engine.RIGHT, engine.DONE, engine.FORWARD, engine.FORWARD, engine.FORWARD):
        episodes.step(np.array([action, engine.RIGHT]))
        seen.append(episodes.revisit.tolist())
    # it turns away; back; stands still; two cells forward; a wall. The other turns round and round.
    assert [one for one, _ in seen] == [False, True, True, False, False, True]
    assert [other for _, other in seen] == [False, False, False, True, True, True]


@pytest.mark.parametrize("history", [0, 1, 4])
def test_push_is_what_step_remembers(history: int) -> None:
    episodes, rng = simulator(history=history, horizon=30), np.random.default_rng(1)
    for _ in range(8):
        before, action = episodes.observe(), rng.integers(episodes.n_actions, size=len(episodes))
        kept = {name: value.copy() for name, value in before.items()}
        episodes.step(action)
        assert_equal(push(before, action, episodes.frame()), episodes.observe())
        assert_equal(before, kept)


# ---- ends ----
def test_an_ended_episode_stays_as_it_ended() -> None:
    episodes = simulator(EMPTY, 2, horizon=len(SOLUTION) + 4)
    for action in SOLUTION:
        assert not episodes.done.any()
        assert episodes.step(np.array([action, engine.LEFT])) == 2
    assert episodes.terminated.tolist() == [True, False]
    assert not episodes.truncated.any()
    assert episodes.success().tolist() == [True, False]
    ended = everything(episodes.fork(np.array([0])))
    assert episodes.step(np.array([engine.FORWARD, engine.LEFT])) == 1
    assert_equal(everything(episodes.fork(np.array([0]))), ended)
    assert episodes.t.tolist() == [5, 6]


@pytest.mark.parametrize("horizon", [3, len(SOLUTION)])
def test_the_horizon_truncates(horizon: int) -> None:
    episodes = simulator(EMPTY, 1, horizon=horizon)
    for t, action in enumerate(SOLUTION[:horizon]):
        assert episodes.truncated.tolist() == [t >= horizon]
        episodes.step(np.array([action]))
    assert episodes.truncated.tolist() == [True]
    assert episodes.terminated.tolist() == episodes.success().tolist() == [horizon == len(SOLUTION)]
    assert episodes.step(np.array([engine.LEFT])) == 0


@pytest.mark.parametrize("wrong", [{"horizon": 0}, {"history": -1}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        simulator(EMPTY, 1, **wrong)


def test_the_levels_own_limit_truncates() -> None:
    limit = int(engine.max_steps(LEVELS[EMPTY].rows)[0])
    episodes = simulator(EMPTY, 1, history=0, horizon=limit + 50)
    for _ in range(limit):
        assert not episodes.done.any()
        episodes.step(np.array([engine.LEFT]))
    assert episodes.truncated.tolist() == [True]
    assert episodes.terminated.tolist() == [False]


# ---- forks ----
def test_stepping_a_fork_leaves_the_original_alone_and_the_other_way_round() -> None:
    episodes, rng = simulator(horizon=40), np.random.default_rng(2)
    for _ in range(3):
        episodes.step(rng.integers(episodes.n_actions, size=len(episodes)))
    fork, before = episodes.fork(), everything(episodes)
    assert_equal(everything(fork), before)
    for _ in range(4):
        fork.step(rng.integers(fork.n_actions, size=len(fork)))
    assert_equal(everything(episodes), before)
    assert (fork.state_hash() != episodes.state_hash()).all()
    forked = everything(fork)
    episodes.step(np.full(len(episodes), engine.LEFT))
    assert_equal(everything(fork), forked)


def test_a_fork_goes_on_as_the_original_does() -> None:
    episodes, rng = simulator(EMPTY, horizon=12), np.random.default_rng(3)
    for _ in range(4):
        episodes.step(rng.integers(3, size=len(episodes)))
    fork = episodes.fork()
    for _ in range(9):  # beyond the horizon
        action = rng.integers(3, size=len(episodes))
        assert episodes.step(action) == fork.step(action)
        assert_equal(everything(fork), everything(episodes))
    assert episodes.done.all()


def test_a_fork_takes_what_it_was_asked_for() -> None:
    episodes = simulator()
    episodes.step(np.array([0, 1, 2, 3, 4, 5]))
    index = np.array([4, 0, 4])
    assert_equal(everything(episodes.fork(index)), {name: v[index] for name, v in everything(episodes).items()})
    assert len(episodes.fork(np.zeros(0, np.int64))) == 0
    repeated = episodes.fork(np.array([2, 2]))
    repeated.step(np.array([engine.LEFT, engine.RIGHT]))
    alone = [episodes.fork(np.array([2])) for _ in range(2)]
    for one, action in zip(alone, (engine.LEFT, engine.RIGHT), strict=True):
        one.step(np.array([action]))
    assert_equal(
        everything(repeated), {n: np.concatenate([everything(a)[n] for a in alone]) for n in everything(repeated)}
    )


def test_put_replaces_episodes_and_shares_nothing() -> None:
    episodes, others = simulator(horizon=30), simulator(horizon=30)
    for t in range(5):
        others.step(np.full(len(others), [engine.LEFT, engine.FORWARD, engine.RIGHT][t % 3]))
    before, source = everything(episodes), everything(others)
    episodes.put(np.array([1, 5]), others.fork(np.array([3, 0])))
    wanted = {name: value.copy() for name, value in before.items()}
    for name in wanted:
        wanted[name][[1, 5]] = source[name][[3, 0]]
    assert_equal(everything(episodes), wanted)
    episodes.step(np.full(len(episodes), engine.LEFT))
    assert_equal(everything(others), source)
    others.step(np.full(len(others), engine.LEFT))  # the episodes that were put went on just like these
    after, there = everything(episodes), everything(others)
    assert_equal({n: v[[1, 5]] for n, v in after.items()}, {n: v[[3, 0]] for n, v in there.items()})


def test_what_is_shown_are_copies() -> None:
    episodes = simulator()
    before = everything(episodes)
    for shown in (*episodes.observe().values(), episodes.frame(), episodes.state_hash(), episodes.states.mission()):
        shown[:] = 1
    assert_equal(everything(episodes), before)


def test_playing_levels_does_not_change_them() -> None:
    levels = import_seeds(EMPTY, range(3))
    rows = levels.rows.copy()
    Simulator(GridStates.of(levels), history=1, horizon=5).step(np.zeros(3, np.int64))
    assert_equal(levels.rows, rows)


# ---- grid states ----
def test_grid_states_step_only_what_they_are_asked_to() -> None:
    states, at = GridStates.of(LEVELS[DOOR_KEY]), np.array([4, 1])
    before = states.rows.copy()
    states.step(at, np.array([engine.LEFT, engine.RIGHT]))
    wanted = before[at]
    engine.step(wanted, np.array([engine.LEFT, engine.RIGHT]))
    assert_equal(states.rows[at], wanted)
    assert_equal(np.delete(states.rows, at, axis=0), np.delete(before, at, axis=0))


def test_missions_are_those_of_the_levels() -> None:
    levels = LEVELS[GO_TO]
    assert len(set(levels.mission)) > 1
    states = GridStates.of(levels)
    length = missions.mission_length(GO_TO)
    assert_equal(states.mission(), np.array([missions.encode(str(m), length) for m in levels.mission]))
    assert_equal(states.take(np.array([3, 1])).mission(), states.mission()[[3, 1]])


# ---- actors and reward ----
def test_the_uniform_actor_takes_every_action_and_its_generator_decides() -> None:
    obs: Obs = {"frames": np.zeros((7000, 1, 50), np.uint8)}
    action = uniform_actor(7)(obs, np.random.default_rng(0))
    assert np.bincount(action, minlength=7).min() > 850
    assert_equal(action, uniform_actor(7)(obs, np.random.default_rng(0)))


def test_stepping_forking_and_watching_ask_for_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any) -> None:
        raise AssertionError(f"somebody asked {inspect.stack()[1].function} for the reward")

    monkeypatch.setattr(engine, "reward", asked)
    monkeypatch.setattr(engine, "succeeded", asked)
    episodes = simulator(EMPTY, 2)
    for action in SOLUTION:
        episodes.step(np.array([action, action]))
        episodes.fork().put(np.array([0]), episodes.fork(np.array([1])))
        everything(episodes)
    assert episodes.terminated.all()
    with pytest.raises(AssertionError):
        episodes.reward()
    with pytest.raises(AssertionError):
        episodes.success()


# ---- where an episode comes from ----
@pytest.mark.parametrize("env_id", LEVELS)
def test_seed_and_actions_lead_to_the_same_state_again(env_id: str) -> None:
    """Through forks and replacements too: what is remembered is the whole way from reset(seed)."""
    episodes, rng = simulator(env_id, horizon=12), np.random.default_rng(0)
    for step in range(12):
        episodes.step(rng.integers(7, size=len(episodes)))
        if step == 5:
            episodes.put(np.array([0, 3]), episodes.fork(np.array([4, 4])))
            episodes = episodes.fork(np.array([5, 0, 1, 2, 3, 3]))
    assert isinstance(episodes.states, GridStates)
    assert episodes.states.env_id == env_id
    assert episodes.states.seed.tolist() == [5, 4, 1, 2, 4, 4]
    for i, taken in enumerate(episodes.taken()):
        again = Simulator(GridStates.of(import_seeds(env_id, [int(episodes.states.seed[i])])), history=3, horizon=12)
        for action in taken:
            again.step(np.array([action]))
        assert len(taken) == episodes.t[i]
        assert again.state_hash() == episodes.state_hash()[i]


def test_luck_changes_what_others_do_and_nothing_else(tmp_path: Path) -> None:
    """The same states, with other futures, and each luck always the same; where nothing is random there is none."""
    levels = bank("MiniGrid-Dynamic-Obstacles-8x8-v0", "train", 16, cache=tmp_path)
    episodes = Simulator(GridStates.of(levels), history=2, horizon=20)
    episodes.step(np.zeros(16, np.int64))
    before = episodes.state_hash()

    def future(luck: int | None) -> np.ndarray:
        other = episodes.fork() if luck is None else episodes.luck(luck)
        assert other is not None
        for name, value in episodes.observe().items():
            np.testing.assert_equal(other.observe()[name], value)
        other.step(np.ones(16, np.int64))
        return other.frame()

    np.testing.assert_equal(future(5), future(5))
    assert (future(5) != future(6)).any(1).mean() > 0.5
    assert (future(5) != future(None)).any(1).mean() > 0.5
    np.testing.assert_equal(episodes.state_hash(), before)
    still = bank("MiniGrid-DoorKey-5x5-v0", "train", 4, cache=tmp_path)
    assert Simulator(GridStates.of(still), history=2, horizon=20).luck(5) is None


class Line:
    """States that show how many steps were taken, modulo 7; not a grid's."""

    n_actions = 3

    def __init__(self, n: int):
        self.at = np.zeros(n, np.int64)

    def take(self, index: np.ndarray) -> "Line":
        other = Line(len(index))
        other.at = self.at[index]
        return other

    def put(self, index: np.ndarray, states: "Line") -> None:
        self.at[index] = states.at

    def step(self, at: np.ndarray, action: np.ndarray, exact: Any = None) -> tuple[np.ndarray, np.ndarray]:
        self.at[at] += 1
        return np.zeros(len(at), np.bool_), np.zeros(len(at), np.bool_)

    def frame(self) -> np.ndarray:
        return (self.at % 7)[:, None].astype(np.uint8)

    def mission(self) -> np.ndarray:
        return np.zeros((len(self.at), 1), np.uint8)


def test_a_far_horizon_costs_no_memory_until_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Simulator(Line(4), history=1, horizon=10**10)._seen.nbytes < 10**5  # type: ignore[arg-type]
    actions = np.random.default_rng(0).integers(3, size=(50, 4))
    remembered = []
    for room in (2, 100):  # grown four times, or large enough
        monkeypatch.setattr(simulator_module, "ROOM", room)
        episodes = Simulator(Line(4), history=1, horizon=45)  # type: ignore[arg-type]
        fresh = Simulator(Line(1), history=1, horizon=45)  # type: ignore[arg-type]
        for t, action in enumerate(actions):
            episodes.step(action)
            if t == 20:
                early = episodes.fork()
            if t == 30:
                episodes.put(np.array([1]), fresh)  # as wide as it was at first
        early.put(np.array([0, 2]), episodes.fork(np.array([0, 2])))  # wider
        assert episodes.t.tolist() == [45, 19, 45, 45]
        np.testing.assert_array_equal(episodes.taken()[3], actions[:45, 3])
        remembered.append([*episodes.taken(), *early.taken(), episodes.revisit, early.revisit, early.t])
    for small, large in zip(*remembered, strict=True):
        np.testing.assert_array_equal(small, large)


def test_a_fork_has_room_for_what_its_episodes_have_done_and_little_more() -> None:
    """Every branch is a fork: as wide as a far horizon, they would be gigabytes."""
    episodes = Simulator(Line(8), history=1, horizon=4000)  # type: ignore[arg-type]
    episodes.make_room(4000)
    assert episodes.fork()._seen.nbytes < 8 * 8 * 20
    for action in np.random.default_rng(0).integers(3, size=(30, 8)):
        episodes.step(action)
    some = episodes.fork(np.array([2, 5]))
    assert 30 < some._taken.shape[1] < 100
    np.testing.assert_equal(some.taken(), [episodes.taken()[2], episodes.taken()[5]])
