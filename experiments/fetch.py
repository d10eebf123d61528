"""Fetch-8x8-N3: pick up the object that is asked for, and no other.

python experiments/fetch.py          is the same as          headstart run fetch
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

# In results/fetch, bc is the best of tuning.csv, PPO of rl.csv; budget.csv says why so many demonstrations.
EXPERIMENT = Experiment.of(
    ENVIRONMENTS["fetch"],
    arms_around(BCConfig(updates=4000, learning_rate=3e-3, weight_decay=0.1), memory=0),
    RL(steps=100_000, n_envs=16, eval_every=10_000, settings={"learning_rate": 1e-3, "n_steps": 128}),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
