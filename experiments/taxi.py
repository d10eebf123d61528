"""Taxi: an environment without a grid's view, in which every judgement of the judge can be checked.

    python experiments/taxi.py          # a minute on one core

Taxi has 500 states and says what each action leads to (`env.unwrapped.P`), so the regret of every action in every state
is known: how many rewards more the best action would bring. The judge has seen a few demonstrations and no reward. In
states that no demonstration has shown, does it rank actions by their regret?

The example also shows what a new environment takes: a function that makes it, and an expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from headstart.envs import Demos, branch, demonstrate, evaluate, make_vec_env, practise
from headstart.envs.simulator import Actor, Simulator, uniform_actor
from headstart.envs.transitions import Branches
from headstart.learners import BC, PPO, BCConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.models import HeadstartPolicy

__all__ = ["DecodedTaxi", "Ranking", "agreement", "best_actions", "make_taxi", "optimal_values", "rank"]

TAXI = next(name for name in ("Taxi-v4", "Taxi-v3") if name in gymnasium.registry)  # gymnasium 1.4 renamed it
PLACES = [5, 5, 5, 4]  # row and column of the taxi, where the passenger is (4: in it), where to
HORIZON = 40
BC_CONFIG = BCConfig(updates=600, hidden_past=0.0)
REFLECT = ReflectionConfig(
    bc=BC_CONFIG,
    judge=JudgeConfig(updates=200),
    rounds=1,
    levels=64,
    level_steps=30,
    states=400,
    round_updates=600,
)


class SharedTable(dict):
    """Taxi's table of transitions, which never changes: copies of an environment share it."""

    def __deepcopy__(self, memo: Any) -> "SharedTable":
        return self


class DecodedTaxi(gymnasium.ObservationWrapper):
    """Taxi's number of a state, taken apart into what it stands for: what is learned of one state helps in others."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make(TAXI, disable_env_checker=True))
        self.taxi = cast(Any, self.unwrapped)
        self.taxi.P = SharedTable(self.taxi.P)
        self.observation_space = spaces.MultiDiscrete(PLACES)

    def observation(self, observation: Any) -> NDArray[np.int64]:
        return np.array(list(self.taxi.decode(int(observation))), np.int64)


def make_taxi() -> gymnasium.Env:
    return DecodedTaxi()


def optimal_values(table: dict[int, dict[int, list[tuple[float, int, float, bool]]]]) -> NDArray[np.float64]:
    """(S, A) the most that each action of each state can still earn, by value iteration without discount."""
    states, actions = len(table), len(table[0])
    q = np.zeros((states, actions))
    while True:
        best, updated = q.max(1), np.zeros_like(q)
        for s in range(states):
            for a in range(actions):
                updated[s, a] = sum(p * (r + (0.0 if over else best[then])) for p, then, r, over in table[s][a])
        if np.abs(updated - q).max() < 1e-9:
            return updated
        q = updated


def best_actions(q: NDArray[np.float64]) -> Callable[[NDArray[np.int64]], int]:
    """The expert: an action without regret, the first of several."""
    return lambda obs: int(q[number(obs[None])[0]].argmax())


def number(places: NDArray[Any]) -> NDArray[np.int64]:
    """The numbers (N,) of states whose places are (N, 4)."""
    return np.asarray(np.ravel_multi_index(tuple(places.astype(np.int64).T), tuple(PLACES)))


def agreement(score: NDArray[np.floating], regret: NDArray[np.floating]) -> float:
    """Of all pairs of actions of different regret (N, A), how often the one of less regret has the higher score.

    Equal scores count half, so that whoever knows nothing gets 0.5.
    """
    better = regret[:, :, None] < regret[:, None, :] - 1e-6
    ahead = np.sign(score[:, :, None] - score[:, None, :]) / 2 + 0.5
    return float(ahead[better].mean())


@dataclass(frozen=True)
class Ranking:
    """How well actions are ranked by their regret in states that no demonstration has shown; 0.5 is chance.

    A judge sees consequences only. Bumping into a wall (regret 1) and picking up nobody (regret 10) both change
    nothing, so that no judge can agree entirely; and it has learned to tell the best action from the others, not these
    from each other. A rule that only dislikes what changes nothing stands beside it, as the bar.
    """

    states: int
    pairs: float
    """Agreement of the judge over all pairs of actions of different regret."""
    best: float
    """Over pairs of an action without regret and one with some."""
    rule_pairs: float
    """The same of the rule."""
    rule_best: float
    favourite: float
    """How often the judge's favourite has no regret; of equal favourites the first."""
    rule_favourite: float
    """Of any of the actions that change something."""
    chance: float
    """Of any action."""


def rank(learner: Reflection, demos: Demos, q: NDArray[np.float64], seed: int = 0) -> Ranking:
    """The learner's judges on states of random walks and of their own policy, on test levels."""
    assert demos.task is not None
    rng = np.random.default_rng([seed, 0x7E57])
    levels = demos.task.levels("test", 60)

    def visited(actor: Actor, steps: int) -> Simulator:
        start = Simulator(levels.take(np.arange(len(levels))), history=demos.history, horizon=HORIZON)
        return practise(start, actor, steps=steps, rng=rng)[0]

    scores, regrets, still = [], [], []
    known = np.unique(number(demos.obs["frames"][:, -1]))
    for actor, steps in ((uniform_actor(len(q[0])), 30), (learner.policy.actor(), 15)):
        states = visited(actor, steps)
        place = number(states.frame())
        _, first = np.unique(place, return_index=True)
        states = states.fork(first[~np.isin(place[first], known)])
        branches: Branches = branch(states)
        value = q[number(states.frame())]
        scores.append(learner.judgement(branches))
        regrets.append(value.max(1, keepdims=True) - value)
        still.append((branches.future[:, :, 0] == branches.frame[:, None]).all(2))
    score, regret, nothing = np.concatenate(scores), np.concatenate(regrets), np.concatenate(still)
    best = regret < 1e-6
    rule = -nothing.astype(float)
    return Ranking(
        states=len(score),
        pairs=agreement(score, regret),
        best=agreement(score, (~best).astype(float)),
        rule_pairs=agreement(rule, regret),
        rule_best=agreement(rule, (~best).astype(float)),
        favourite=float(best[np.arange(len(score)), score.argmax(1)].mean()),
        rule_favourite=float(((best & ~nothing).sum(1) / (~nothing).sum(1)).mean()),
        chance=float(best.mean()),
    )


def main(episodes: int = 16, seed: int = 0) -> None:
    q = optimal_values(cast(Any, make_taxi().unwrapped).P)
    demos = demonstrate(make_taxi, best_actions(q), episodes, seed=seed, horizon=HORIZON)
    env = make_vec_env(demos, n_envs=16, seed=seed)
    assert demos.task is not None
    levels = demos.task.levels("test", 300)
    shown = len(np.unique(number(demos.obs["frames"][:, -1])))
    print(f"{episodes} demonstrations, {len(demos)} steps, {shown} of 500 states")

    def success(policy: HeadstartPolicy, greedy: bool) -> float:
        rng = np.random.default_rng(seed)
        actor = policy.actor(greedy=greedy)
        return float(evaluate(levels, actor, history=demos.history, horizon=HORIZON, rng=rng)[0].mean())

    def fresh_policy() -> HeadstartPolicy:
        kwargs = {"features_extractor_kwargs": {"memory": 0}}
        return PPO(HeadstartPolicy, env, seed=seed, n_steps=16, batch_size=64, policy_kwargs=kwargs).policy

    arms: dict[str, Any] = {
        "bc": (BC, BC_CONFIG),
        "bc_long": (BC, BCConfig(**{**vars(BC_CONFIG), "updates": REFLECT.total_updates})),
        "reflect": (Reflection, REFLECT),
    }
    branches = branch(demos)
    for name, (learner, config) in arms.items():
        policy = fresh_policy()
        fitted = learner(policy, config, seed=seed)
        cost = fitted.fit(demos, branches, env)
        looked = 0 if learner is BC else branches.env_steps
        print(
            f"{name:8} success sampled {success(policy, False):.3f}, greedy {success(policy, True):.3f}; "
            f"{cost.updates} updates, {cost.env_steps + looked} steps of its own"
        )
        if isinstance(fitted, Reflection):
            for what, value in vars(rank(fitted, demos, q, seed)).items():
                print(f"  {what:15} {value:.3f}" if isinstance(value, float) else f"  {what:15} {value}")


if __name__ == "__main__":
    main()
