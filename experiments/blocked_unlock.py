"""MiniGrid-BlockedUnlockPickup: clear the door, unlock it, put the key down, pick up the box.

python experiments/blocked_unlock.py          is the same as          headstart run blocked_unlock
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

# In results/blocked_unlock, bc is the best of tuning.csv, PPO of rl.csv; budget.csv says why so many demonstrations.
EXPERIMENT = Experiment.of(
    ENVIRONMENTS["blocked_unlock"],
    arms_around(BCConfig(updates=1500, learning_rate=3e-3, weight_decay=0.3, hidden_past=0.5), memory=4),
    RL(
        steps=100_000,
        n_envs=16,
        eval_every=10_000,
        settings={"learning_rate": 3e-4, "n_steps": 128, "n_epochs": 8},
    ),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
