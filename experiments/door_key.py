"""MiniGrid-DoorKey-8x8: fetch the key, open the door, reach the goal. The five-minute example.

python experiments/door_key.py          is the same as          headstart run door_key
"""

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.pipeline import RL, Arm, Experiment
from headstart.learners import BCConfig, IWMConfig, ReflectionConfig

ENVIRONMENT = ENVIRONMENTS["door_key"]
BC = BCConfig(updates=1500, label_smoothing=0.1)  # tuned on validation levels: experiments/LOG.md
REFLECT = ReflectionConfig()
ALL_UPDATES = REFLECT.judge.members * REFLECT.judge.updates + REFLECT.updates + REFLECT.rounds * REFLECT.round_updates

EXPERIMENT = Experiment(
    name=ENVIRONMENT.name,
    env_id=ENVIRONMENT.id,
    demos=ENVIRONMENT.budget,
    horizon=ENVIRONMENT.horizon,
    history=ENVIRONMENT.history,
    arms={
        "scratch": Arm(None, memory=0, rl=True),
        "bc": Arm(BC, memory=0, rl=True),
        "bc_long": Arm(BCConfig(updates=ALL_UPDATES, label_smoothing=0.1), memory=0, rl=False),
        "iwm": Arm(IWMConfig(bc=BC), memory=0, rl=False),
        "reflect": Arm(REFLECT, memory=4, rl=True),
    },
    rl=RL(
        steps=300_000,
        n_envs=64,
        settings={"n_steps": 64, "batch_size": 512, "n_epochs": 4, "learning_rate": 3e-4, "ent_coef": 0.01},
    ),
)

if __name__ == "__main__":
    from headstart.experiments.cli import run_script

    run_script(EXPERIMENT.name)
