"""Vector environments: minigrid's own rewards and limits, autoreset, what both libraries read, resume."""

import warnings
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from minigrid.wrappers import ImgObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from headstart.envs import engine, missions
from headstart.envs.banks import import_seeds
from headstart.envs.errors import DataError, UsageError
from headstart.envs.simulator import GridStates, Simulator, push
from headstart.envs.vector import HeadstartVecEnv, HeadstartVectorEnv, make_vec_env

EMPTY = "MiniGrid-Empty-5x5-v0"
GO_TO = "BabyAI-GoToLocal-v0"
SOLUTION = [engine.FORWARD, engine.FORWARD, engine.RIGHT, engine.FORWARD, engine.FORWARD]  # of EMPTY
LEVELS = {env_id: import_seeds(env_id, range(12)) for env_id in (EMPTY, GO_TO)}


def play(env: HeadstartVecEnv, steps: int, seed: int = 0) -> list[tuple]:
    """What random actions bring."""
    rng = np.random.default_rng(seed)
    return [env.step(rng.integers(env.action_space.n, size=env.num_envs)) for _ in range(steps)]


def assert_equal(a: Any, b: Any) -> None:
    """Of nested tuples, lists and dicts of arrays and numbers."""
    np.testing.assert_equal(a, b)


def python_frame(obs: dict[str, Any]) -> np.ndarray:
    """minigrid's observation as a frame (50,)."""
    cells = obs["image"].astype(np.int64) @ (engine.TYPE_STEP, engine.COLOR_STEP, 1)
    return np.append(cells.reshape(-1), obs["direction"])


# ---- against minigrid ----
@pytest.mark.parametrize(
    ("env_id", "horizon", "expected"),
    [
        ("MiniGrid-Empty-Random-5x5-v0", None, {"success"}),
        ("MiniGrid-DoorKey-5x5-v0", 13, {"time"}),
        ("MiniGrid-Fetch-5x5-N2-v0", None, {"success", "failure"}),
        ("MiniGrid-LavaGapS5-v0", 30, {"failure", "time"}),
        ("MiniGrid-Dynamic-Obstacles-5x5-v0", None, {"harm"}),
        (GO_TO, 20, {"success", "time"}),
    ],
)
def test_as_minigrid_does(env_id: str, horizon: int | None, expected: set[str]) -> None:
    """Frames, missions, rewards and both kinds of ending are those of minigrid's own environments."""
    levels = import_seeds(env_id, range(100, 130))
    env = HeadstartVecEnv(levels, 4, seed=1, history=2, horizon=horizon)
    pythons = [gymnasium.make(env_id, max_episode_steps=horizon) for _ in range(4)]
    obs, rng, endings = env.reset(), np.random.default_rng(2), set()
    starting = list(range(4))
    for _ in range(300):
        for i in starting:
            first, _ = pythons[i].reset(seed=int(levels.seed[env.level[i]]))
            assert_equal(obs["frames"][i, -1], python_frame(first))
            assert_equal(missions.decode(obs["mission"][i]), first["mission"].lower())
        action = rng.integers(env.action_space.n, size=4)
        if rng.random() < 0.5:  # otherwise it mostly turns on the spot
            action[:] = engine.FORWARD
        obs, reward, done, infos = env.step(action)
        for i, python in enumerate(pythons):
            theirs, their_reward, terminated, truncated, _ = python.step(int(action[i]))
            assert reward[i] == np.float32(their_reward)
            assert done[i] == (terminated or truncated)
            mine = infos[i]["terminal_observation"] if done[i] else {k: v[i] for k, v in obs.items()}
            assert_equal(mine["frames"][-1], python_frame(theirs))
            if done[i]:
                assert infos[i]["TimeLimit.truncated"] == (truncated and not terminated)
                assert infos[i]["episode"] == {"r": their_reward, "l": python.unwrapped.step_count}
                assert infos[i]["is_success"] == (their_reward > 0)
                how = {1: "success", 0: "failure", -1: "harm"}[int(np.sign(their_reward))]
                endings.add(how if terminated else "time")
        starting = np.flatnonzero(done).tolist()
    assert expected <= endings


@pytest.mark.parametrize(
    ("horizon", "last", "truncated"), [(4, 4, True), (5, 5, False), (6, 5, False), (None, 5, False)]
)
def test_success_in_the_last_step_is_no_time_limit(horizon: int | None, last: int, truncated: bool) -> None:
    env = HeadstartVecEnv(LEVELS[EMPTY], 2, horizon=horizon)
    vector = HeadstartVectorEnv(LEVELS[EMPTY], 2, horizon=horizon)
    env.reset(), vector.reset()
    for t, action in enumerate(SOLUTION[:last], start=1):
        _, reward, done, infos = env.step(np.full(2, action))
        _, _, terminations, truncations, _ = vector.step(np.full(2, action))
        assert done.all() == (t == last)
    assert infos[0]["TimeLimit.truncated"] is truncated
    assert terminations.all() == (not truncated)
    assert truncations.all() == (horizon == last)  # Gymnasium's two flags may both be true
    assert infos[0]["is_success"] is not truncated
    assert reward[0] == (0 if truncated else np.float32(1 - 0.9 * 5 / 100))
    assert infos[0]["episode"]["r"] == pytest.approx(reward[0])


@pytest.mark.parametrize("env_id", ["MiniGrid-Dynamic-Obstacles-5x5-v0", "MiniGrid-DoorKey-5x5-v0"])
def test_the_actions_are_minigrids(env_id: str) -> None:
    """Before the start of an episode the last actions are the number after the last one."""
    space, levels = gymnasium.make(env_id).action_space, import_seeds(env_id, range(4))
    env, vector = HeadstartVecEnv(levels, 2), HeadstartVectorEnv(levels, 2)
    assert env.action_space == space
    assert vector.single_action_space == space
    assert env.observation_space["actions"].high.max() == space.n  # type: ignore[index]
    assert (env.reset()["actions"] == space.n).all()


# ---- autoreset ----
def test_the_last_observation_and_the_first_of_the_next_episode() -> None:
    levels = LEVELS[GO_TO]
    env = HeadstartVecEnv(levels, 8, history=3, horizon=10)
    start = Simulator(GridStates.of(levels), history=3, horizon=10).observe()
    obs, rng, ended = env.reset(), np.random.default_rng(0), 0
    for _ in range(60):
        action = rng.integers(7, size=8)
        before, (obs, _, done, infos) = obs, env.step(action)
        for i in np.flatnonzero(done):
            last = infos[i]["terminal_observation"]
            one = {name: value[i : i + 1] for name, value in before.items()}
            remembered = push(one, action[i : i + 1], last["frames"][None, -1])
            assert_equal({name: value[None] for name, value in last.items()}, remembered)
            assert_equal({k: v[i] for k, v in obs.items()}, {k: v[env.level[i]] for k, v in start.items()})
            ended += 1
        assert all(info == {} for info, over in zip(infos, done, strict=True) if not over)
    assert ended > 40


def test_every_level_of_the_bank_is_played() -> None:
    env = HeadstartVecEnv(LEVELS[GO_TO], 4, horizon=1)
    env.reset()
    played = []
    for _ in range(300):
        played.append(env.level.copy())
        env.step(np.zeros(4, np.int64))
    counts = np.bincount(np.concatenate(played), minlength=12)
    assert counts.min() > 60  # 100 expected, standard deviation 9.6
    assert counts.max() < 140


def test_what_was_returned_stays_as_it_is() -> None:
    """Callers keep observations and rewards (SB3 even writes into the rewards)."""
    env = HeadstartVecEnv(LEVELS[GO_TO], 4, horizon=5)
    env.reset()
    kept = play(env, 3)
    copies = [({k: v.copy() for k, v in obs.items()}, r.copy(), d.copy()) for obs, r, d, _ in kept]
    play(env, 20)
    assert_equal([step[:3] for step in kept], copies)


# ---- seeds and resume ----
def test_the_seed_decides_everything() -> None:
    def run(seed: int) -> list[tuple]:
        env = HeadstartVecEnv(LEVELS[GO_TO], 4, seed=seed, horizon=8)
        env.reset()
        return play(env, 40)

    assert_equal(run(3), run(3))
    with pytest.raises(AssertionError):
        assert_equal(run(3), run(4))


def test_sb3_seed_takes_effect_at_the_next_reset() -> None:
    env = HeadstartVecEnv(LEVELS[GO_TO], 4)
    runs = []
    for _ in range(2):
        env.seed(5)
        env.reset()
        runs.append(play(env, 70))
    assert_equal(*runs)
    env.reset()  # without a seed the generator goes on
    with pytest.raises(AssertionError):
        assert_equal(play(env, 70), runs[0])


def test_resume_is_exact(tmp_path) -> None:
    env = HeadstartVecEnv(LEVELS[GO_TO], 4, seed=1, horizon=20)
    env.reset()
    play(env, 33)
    np.savez(tmp_path / "state.npz", **env.state_dict())
    expected = play(env, 100, seed=7)
    other = HeadstartVecEnv(LEVELS[GO_TO], 4, seed=2, horizon=20)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        other.load_state_dict(state)
    np.testing.assert_equal(other.simulator.states.seed, other.levels.seed[other.level])
    np.testing.assert_equal(other.simulator.states.mission(), other.simulator.observe()["mission"])
    assert_equal(play(other, 100, seed=7), expected)
    assert_equal(other.state_dict(), env.state_dict())


@pytest.mark.parametrize(
    ("levels", "n_envs", "horizon", "named"),
    [
        (LEVELS[GO_TO], 5, 20, "n_envs"),
        (LEVELS[GO_TO], 4, 21, "_seen"),
        (LEVELS[GO_TO][:11], 4, 20, "bank"),
        (LEVELS[GO_TO][::-1], 4, 20, "bank"),
    ],
)
def test_states_of_something_else_are_refused(levels, n_envs: int, horizon: int, named: str) -> None:
    state = HeadstartVecEnv(LEVELS[GO_TO], 4, horizon=20).state_dict()
    env = HeadstartVecEnv(levels, n_envs, horizon=horizon)
    before = env.state_dict()
    with pytest.raises(DataError, match=named):
        env.load_state_dict(state)
    assert_equal(env.state_dict(), before)
    del state["rows"]
    with pytest.raises(DataError, match="'rows' is missing"):
        HeadstartVecEnv(LEVELS[GO_TO], 4, horizon=20).load_state_dict(state)


# ---- no reward before reinforcement learning ----
def test_fresh_levels_and_forks_ask_for_no_reward(monkeypatch) -> None:
    env = HeadstartVecEnv(LEVELS[GO_TO], 4)
    before = env.state_dict()

    def forbidden(rows) -> None:
        raise AssertionError("a reward was computed")

    monkeypatch.setattr(engine, "reward", forbidden)
    practice = env.fresh(20, np.random.default_rng(0))
    fork = practice.fork()
    for simulator in (practice, fork):
        simulator.step(np.full(20, engine.FORWARD))
    assert len(practice) == 20
    assert_equal(env.state_dict(), before)  # nor do the running episodes notice
    with pytest.raises(AssertionError, match="a reward was computed"):
        env.step(np.zeros(4, np.int64))


def test_fresh_levels_follow_the_generator_given() -> None:
    env = HeadstartVecEnv(LEVELS[GO_TO], 4)
    hashes = [env.fresh(50, np.random.default_rng(seed)).state_hash() for seed in (0, 0, 1)]
    assert_equal(hashes[0], hashes[1])
    assert (hashes[0] != hashes[2]).any()
    assert set(hashes[0]) == set(engine.state_hash(LEVELS[GO_TO].rows))


# ---- bad input ----
@pytest.mark.parametrize("action", [np.zeros(3, int), np.zeros((4, 1), int), np.zeros(4), np.full(4, 7)])
def test_wrong_actions_are_refused(action: np.ndarray) -> None:
    env = HeadstartVecEnv(LEVELS[EMPTY], 4)
    env.reset()
    with pytest.raises(UsageError):
        env.step(action)


@pytest.mark.parametrize(
    "wrong",
    [*({"n_envs": n} for n in (0, 1.5, "2")), {"horizon": 0}, {"history": -1}, {"history": 0}, {"seed": -1}],
)
def test_wrong_numbers_are_refused(wrong: dict[str, Any]) -> None:
    for kind in (HeadstartVecEnv, HeadstartVectorEnv)[: 1 if wrong == {"history": 0} else 2]:
        with pytest.raises(UsageError, match=f"{EMPTY}: {next(iter(wrong))}="):
            kind(LEVELS[EMPTY], **wrong)


def test_what_no_vector_environment_can_be_made_of_is_told_another_way() -> None:
    def make_env() -> gymnasium.Env:
        return gymnasium.make("CartPole-v1")

    wrong: Any
    for wrong in (make_env, make_env(), dict, None):
        with pytest.raises(UsageError, match=rf"not a {type(wrong).__name__}\. .*use demonstrate\(make_env, \.\.\.\)"):
            make_vec_env(wrong)
    with pytest.raises(UsageError, match=r"DorKey.*Did you mean MiniGrid-DoorKey-5x5-v0"):
        make_vec_env("MiniGrid-DorKey-5x5-v0")
    with pytest.raises(UsageError, match=r"n_levels=1\.5\. Give a whole number"):
        make_vec_env(EMPTY, n_levels=1.5)  # type: ignore[arg-type]


def test_what_would_have_no_effect_is_refused() -> None:
    env = HeadstartVecEnv(LEVELS[EMPTY], 2)
    with pytest.raises(UsageError, match="Options of reset"):
        env.set_options({"size": 3})
    with pytest.raises(UsageError, match="Options of reset"):
        HeadstartVectorEnv(LEVELS[EMPTY], 2).reset(options={"reset_mask": np.ones(2, bool)})
    with pytest.raises(UsageError, match="horizon"):
        env.set_attr("horizon", 3)
    with pytest.raises(UsageError, match="fresh"):
        env.env_method("fresh")


# ---- Stable-Baselines3 ----
def ppo(env: Any, **settings: Any) -> PPO:
    return PPO("MultiInputPolicy", env, seed=0, device="cpu", **settings)


def test_ppo_takes_observations_as_they_are_and_logs_episodes() -> None:
    env = HeadstartVecEnv(LEVELS[GO_TO], 8, horizon=16)
    model = ppo(env, n_steps=32, n_epochs=1).learn(512)
    assert model.get_env() is env  # nothing was wrapped around it
    for name, value in env.simulator.observe().items():
        assert model.rollout_buffer.observations[name].shape == (32 * 8, *value.shape[1:])
        assert model.rollout_buffer.observations[name].dtype == np.uint8
    assert len(model.ep_info_buffer) > 10
    assert all(0 < info["l"] <= 16 for info in model.ep_info_buffer)
    assert len(model.ep_success_buffer) == len(model.ep_info_buffer)


def test_ppo_with_vec_monitor_sees_the_same_episodes() -> None:
    plain, monitored = (HeadstartVecEnv(LEVELS[GO_TO], 8, seed=0, horizon=16) for _ in range(2))
    with pytest.warns(UserWarning, match="already wrapped"):  # the episodes are monitored without it
        monitor = VecMonitor(monitored, info_keywords=("is_success",))
    models = [ppo(env, n_steps=32, n_epochs=1).learn(512) for env in (plain, monitor)]
    mine, theirs = (list(model.ep_info_buffer) for model in models)
    assert len(mine) > 10
    for name in ("r", "l"):
        assert [episode[name] for episode in mine] == pytest.approx([episode[name] for episode in theirs])
    assert monitor.get_attr("horizon") == [16] * 8
    assert len(monitor.fresh(3, np.random.default_rng(0))) == 3  # reached through the wrapper


def test_ppo_learns(tmp_path) -> None:
    """MiniGrid-Empty-5x5 is solved, nearly by the shortest way. Its only level is in the split "test"."""
    env = make_vec_env(EMPTY, 16, split="test", n_levels=1, history=1, horizon=20, cache=tmp_path)
    model = ppo(env, n_steps=32, batch_size=128, n_epochs=4, learning_rate=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # evaluation finds its episodes monitored
        before, _ = evaluate_policy(model, env, n_eval_episodes=64, deterministic=False)
        model.learn(16_000)
        after, _ = evaluate_policy(model, env, n_eval_episodes=64, deterministic=False)
    assert before < 0.5
    assert np.mean(model.ep_success_buffer) > 0.9
    assert after > 0.9


def test_levels_come_from_the_split_that_was_asked_for(tmp_path) -> None:
    seeds = {}
    for split in ("train", "test"):
        env = make_vec_env(GO_TO, 2, split=split, n_levels=20, cache=tmp_path)
        seeds[split] = set(env.levels.seed.tolist())
        assert len(seeds[split]) == 20
    assert not seeds["train"] & seeds["test"]


# ---- Gymnasium ----
def test_gymnasium_env_runs_the_same_episodes() -> None:
    env = HeadstartVecEnv(LEVELS[GO_TO], 4, seed=3, horizon=9)
    vector = HeadstartVectorEnv(LEVELS[GO_TO], 4, seed=3, horizon=9)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert_equal(vector.reset()[0], env.reset())
    rng = np.random.default_rng(0)
    for _ in range(40):
        action = rng.integers(7, size=4)
        obs, reward, done, infos = env.step(action)
        theirs, their_reward, terminated, truncated, their_infos = vector.step(action)
        assert_equal(theirs, obs)
        assert_equal(their_reward.astype(np.float32), reward)
        assert_equal(terminated | truncated, done)
        assert obs in vector.observation_space
        assert all({k: v[i] for k, v in obs.items()} in env.observation_space for i in range(4))
        for i in np.flatnonzero(done):
            assert_equal(their_infos["final_obs"][i], infos[i]["terminal_observation"])
            assert their_infos["final_info"]["is_success"][i] == infos[i]["is_success"]


class Successes(gymnasium.Wrapper):
    """minigrid, which says in its info whether the episode has ended in success."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, _ = super().step(action)
        over = {"is_success": bool(reward > 0)} if terminated or truncated else {}
        return obs, reward, terminated, truncated, over


def test_infos_are_formed_as_gymnasium_forms_them() -> None:
    """Keys, masks, types and shapes are those of its own SyncVectorEnv."""
    vector = HeadstartVectorEnv(LEVELS[EMPTY], 3, horizon=7)
    make = lambda: Successes(ImgObsWrapper(gymnasium.make(EMPTY, max_episode_steps=7)))  # noqa: E731
    theirs = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    vector.reset(), theirs.reset()
    for t in range(20):
        action = np.array([SOLUTION[t % 5], engine.LEFT, engine.FORWARD])
        mine, reference = vector.step(action)[4], theirs.step(action)[4]
        assert mine.keys() == reference.keys()
        for name in mine:
            if name == "final_obs":
                assert mine[name].shape == reference[name].shape
                assert [o is None for o in mine[name]] == [o is None for o in reference[name]]
            else:
                assert_equal(mine[name], reference[name])


def test_gymnasium_wrappers_find_what_they_need() -> None:
    vector = RecordEpisodeStatistics(HeadstartVectorEnv(LEVELS[EMPTY], 2))
    listed = DictInfoToList(vector)
    listed.reset(seed=0)
    for action in SOLUTION * 3:
        *_, infos = listed.step(np.array([action, engine.LEFT]))
    assert list(vector.length_queue) == [5] * 3
    assert list(vector.return_queue) == pytest.approx([0.955] * 3)
    assert infos[0]["final_info"]["is_success"]
    assert infos[1] == {}


class OneOf(gymnasium.Env):
    """One of the episodes as a single environment, for the checkers of both libraries: they know no other."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        self.vector = HeadstartVectorEnv(LEVELS[GO_TO], 1, horizon=20)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        obs, infos = self.vector.reset(seed=seed, options=options)
        return {name: value[0] for name, value in obs.items()}, infos

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, infos = self.vector.step(np.array([action]))
        obs = infos["final_obs"][0] if terminated[0] or truncated[0] else {k: v[0] for k, v in obs.items()}
        return obs, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


def test_the_checkers_of_both_libraries_are_content() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*unconventional shape")  # it would like 1-D or images
        sb3_check_env(OneOf())
        warnings.filterwarnings("ignore", message=".*(not wrapped|spec|render).*")
        gymnasium_check_env(OneOf(), skip_render_check=True)
