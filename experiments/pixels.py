"""Pixels instead of a view: MiniGrid-DoorKey-5x5 as a picture of 56 x 56 in colour, read by convolutions.

    python experiments/pixels.py [--demos 8] [--seed 0]

The environment runs in Python, as one of your own would: states are forked by copying it, and every future is drawn
again. The expert knows what is behind the pixels; the agents do not.
"""

import argparse
import copy
from collections.abc import Iterator
from typing import Any, cast

import gymnasium
import numpy as np
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgPartialObsWrapper

from headstart.envs import branch, demonstrate, evaluate, make_vec_env
from headstart.envs.episode import Outcome
from headstart.envs.experts import expert_for
from headstart.envs.simulator import uniform_actor
from headstart.learners import BC, PPO, BCConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.models import HeadstartPolicy

__all__ = ["ENV_ID", "Pictured", "reached"]

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
HORIZON = 60
BC_CONFIG = BCConfig(updates=1000)
REFLECT = ReflectionConfig(
    bc=BC_CONFIG,
    judge=JudgeConfig(members=1, updates=300),
    rounds=1,
    levels=32,
    level_steps=40,
    states=500,
    round_updates=1000,
)


class Pictured:
    """Makes the environment, and demonstrates in the one that it has made last."""

    def make(self) -> gymnasium.Env:
        self.env = RGBImgPartialObsWrapper(gymnasium.make(ENV_ID))
        return self.env

    def expert(self, obs: Any) -> int:
        """What MiniGrid's bot does, which looks at the grid itself and has planned all of it at the start."""
        if not cast(MiniGridEnv, self.env.unwrapped).step_count:
            self.plan: Iterator[int] = iter(expert_for(ENV_ID).solve(copy.deepcopy(self.env.unwrapped)).actions)
        return next(self.plan)


def reached(outcome: Outcome) -> bool:
    """DoorKey ends at the goal, or when time is over."""
    return outcome.terminated


def main(episodes: int = 8, seed: int = 0) -> None:
    pictured = Pictured()
    demos = demonstrate(
        pictured.make, pictured.expert, episodes, seed=seed, horizon=HORIZON, success=reached, mode="deepcopy"
    )
    env = make_vec_env(demos, n_envs=16, seed=seed)
    assert demos.task is not None
    levels = demos.task.levels("test", 200)

    def score(actor: Any) -> str:
        success, _ = evaluate(levels, actor, history=demos.history, horizon=HORIZON, rng=np.random.default_rng(seed))
        return f"at the goal within {HORIZON} steps {success.mean():.3f}"

    print(f"{episodes} demonstrations, {len(demos)} steps, {demos.layout.width} bytes a frame")
    print(f"{'random':8} {score(uniform_actor(env.simulator.n_actions))}", flush=True)
    branches = branch(demos)
    for name in ("bc", "reflect"):
        policy = PPO(HeadstartPolicy, env, seed=seed, n_steps=16, batch_size=64).policy
        if name == "bc":
            BC(policy, BC_CONFIG, seed=seed).fit(demos)
        else:
            Reflection(policy, REFLECT, seed=seed).fit(demos, branches, env)
        for mode in ("sampled", "greedy"):
            print(f"{name:8} {mode:8} {score(policy.actor(greedy=mode == 'greedy'))}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.demos, options.seed)
