"""MiniGrid-MultiRoom-N6: through six rooms and their doors to the goal.

python experiments/multi_room.py          is the same as          headstart run multi_room
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

# bc is the best of results/multi_room/tuning.csv, PPO bc's best of rl.csv, then of cures.csv; budget.csv says why so
# many demonstrations.
EXPERIMENT = Experiment.of(
    ENVIRONMENTS["multi_room"],
    arms_around(BCConfig(updates=1500, learning_rate=3e-3, weight_decay=0.01, hidden_past=0.5), memory=4),
    RL(
        steps=100_000, n_envs=16, eval_every=5_000, settings={"learning_rate": 3e-4, "ent_coef": 0.003, "kl_coef": 0.03}
    ),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
