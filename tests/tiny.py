"""What tests of tuning share: an experiment that is over in no time, and a pool of processes that is this one."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from headstart.experiments.arms import Arm
from headstart.experiments.experiment import RL, Experiment
from headstart.learners import BCConfig

LEARNED = BCConfig(updates=3, batch_size=8, learning_rate=2e-3, weight_decay=0.1, hidden_past=0.3)
TINY = Experiment(
    name="tiny",
    env_id="MiniGrid-DoorKey-5x5-v0",
    demos=2,
    horizon=20,
    history=4,
    ood={},
    random_success=0.0,
    expert_success=1.0,
    arms={"bc": Arm(LEARNED, memory=1, rl=True)},
    rl=RL(),
    train_levels=8,
)


class Here:
    """A pool of processes that is this process: what is patched here is patched there."""

    def __init__(self, processes: int, context: Any, initializer: Callable[[], None]) -> None: ...

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future:
        future: Future = Future()
        future.set_result(work(*arguments))
        return future

    def map(self, work: Callable[..., Any], *columns: Any) -> Iterator[Any]:
        return map(work, *columns)

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None: ...

    def shutdown(self, **options: Any) -> None: ...
