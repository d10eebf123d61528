"""Acrobot: numbers instead of a view. Two links hang from a bar; a motor between them has to swing the tip up.

    python experiments/acrobot.py       # a minute on one core

The expert pushes the way in which the second link already turns, which adds energy with every push. It needs about 80
steps. An episode succeeds here if the tip is up within 100. So little is enough to clone such a rule that the example
shows how it is done, and not who wins.
"""

from typing import Any

import gymnasium
import numpy as np

from headstart.envs import branch, demonstrate, evaluate, make_vec_env
from headstart.envs.episode import Outcome
from headstart.envs.simulator import uniform_actor
from headstart.learners import BC, IWM, PPO, BCConfig, IWMConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.models import HeadstartPolicy

__all__ = ["add_energy", "make_acrobot", "swung_up"]

HORIZON = 100
BC_CONFIG = BCConfig(updates=300, hidden_past=0.0)
REFLECT = ReflectionConfig(
    bc=BC_CONFIG,
    judge=JudgeConfig(updates=200),
    rounds=1,
    levels=16,
    level_steps=60,
    states=300,
    round_updates=300,
)


def make_acrobot() -> gymnasium.Env:
    return gymnasium.make("Acrobot-v1", disable_env_checker=True)


def add_energy(obs: Any) -> int:
    """The expert: torque 2 is forwards, 0 backwards; obs[5] is the angular velocity of the second link."""
    return 2 if obs[5] > 0 else 0


def swung_up(outcome: Outcome) -> bool:
    """Acrobot ends when the tip is up, and pays -1 for every step until then."""
    return outcome.terminated


def main(episodes: int = 1, seed: int = 0) -> None:
    demos = demonstrate(
        make_acrobot, add_energy, episodes, seed=seed, horizon=HORIZON, success=swung_up, only_successes=True
    )
    env = make_vec_env(demos, n_envs=16, seed=seed)
    branches = branch(demos)
    assert demos.task is not None
    levels = demos.task.levels("test", 100)

    def score(actor: Any) -> str:
        rng = np.random.default_rng(seed)
        success, length = evaluate(levels, actor, history=demos.history, horizon=HORIZON, rng=rng)
        return f"up within {HORIZON} steps {success.mean():.2f}, mean steps {length.mean():.0f}"

    print(f"{episodes} demonstrations, {len(demos)} steps, forked by {demos.task.mode}")
    print(f"{'random':8} {score(uniform_actor(env.simulator.n_actions))}")
    arms: dict[str, Any] = {
        "bc": (BC, BC_CONFIG),
        "iwm": (IWM, IWMConfig(updates=300, bc=BC_CONFIG)),
        "reflect": (Reflection, REFLECT),
    }
    for name, (learner, config) in arms.items():
        kwargs = {"features_extractor_kwargs": {"memory": 0}}
        policy = PPO(HeadstartPolicy, env, seed=seed, n_steps=16, batch_size=64, policy_kwargs=kwargs).policy
        cost = learner(policy, config, seed=seed).fit(demos, branches, env)
        looked = 0 if learner is BC else branches.env_steps
        for mode in ("sampled", "greedy"):
            print(f"{name:8} {mode} {score(policy.actor(greedy=mode == 'greedy'))}")
        print(f"{'':8} {cost.updates} updates, {cost.env_steps + looked} steps of its own")


if __name__ == "__main__":
    main()
