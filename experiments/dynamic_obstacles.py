"""Dynamic-Obstacles-10x10-N16: to the goal without touching any of the sixteen things that move.

python experiments/dynamic_obstacles.py          is the same as          headstart run dynamic_obstacles
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

# In results/dynamic_obstacles, bc is the best of tuning.csv, PPO of rl.csv; budget.csv says why so many demonstrations.
EXPERIMENT = Experiment.of(
    ENVIRONMENTS["dynamic_obstacles"],
    arms_around(BCConfig(updates=1500, learning_rate=1e-3, weight_decay=0.01, hidden_past=0.5), memory=1),
    RL(steps=100_000, n_envs=16, eval_every=10_000, settings={"learning_rate": 1e-3}),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
