"""MiniGrid-MemoryS13Random: look at an object, walk down the hallway, choose the same one there.

python experiments/memory.py          is the same as          headstart run memory
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.arms import arms_around
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

# In results/memory, bc is the best of tuning.csv, PPO of rl.csv; budget.csv says why so many demonstrations.
EXPERIMENT = Experiment.of(
    ENVIRONMENTS["memory"],
    arms_around(
        BCConfig(updates=4000, learning_rate=3e-3, weight_decay=0.1, hidden_past=0.0, hidden_actions=0.5), memory=24
    ),
    RL(steps=100_000, n_envs=16, eval_every=10_000, settings={"learning_rate": 3e-4, "n_steps": 128}),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
