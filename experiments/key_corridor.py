"""MiniGrid-KeyCorridorS3R3: find the key, unlock the room, pick up what is in it.

python experiments/key_corridor.py          is the same as          headstart run key_corridor
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

# bc is the best of results/key_corridor/tuning.csv, PPO the best of rl.csv, where `reflect` learns best at another rate
# than bc; budget.csv says why so many demonstrations.
EXPERIMENT = Experiment.of(
    ENVIRONMENTS["key_corridor"],
    arms_around(
        BCConfig(updates=1500, learning_rate=3e-3, weight_decay=0.3, hidden_past=0.5),
        memory=4,
        reflect_ppo={"learning_rate": 3e-4, "n_epochs": 8},
    ),
    RL(steps=100_000, n_envs=64, eval_every=10_000, settings={"learning_rate": 1e-3, "ent_coef": 0.003}),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
