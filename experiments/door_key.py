"""MiniGrid-DoorKey-8x8: fetch the key, open the door, reach the goal.

python experiments/door_key.py          is the same as          headstart run door_key
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

# bc is the best of results/door_key/tuning.csv, PPO bc's best of rl.csv, then of cures.csv.
EXPERIMENT = Experiment.of(
    ENVIRONMENTS["door_key"],
    arms_around(BCConfig(updates=1500, learning_rate=3e-3, weight_decay=0.1, hidden_past=0.5), memory=4),
    RL(steps=100_000, n_envs=16, eval_every=5_000, settings={"learning_rate": 1e-3}),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
