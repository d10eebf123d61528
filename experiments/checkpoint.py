"""Fine-tuning that goes on after a kill as if nothing had happened: where it was, in two files that take turns.

A checkpoint is made between two updates, where no rollout is half done: weights, optimizers, the anchor, every
generator of random numbers, counters; of PPO also episodes and what they remember, their statistics, and what the
logger has still to say. (GRPO's attempts are over when an update is.) What follows from all of that is the same bit for
bit on the same machine's CPU, and on a GPU up to rounding. Plain arrays and JSON, through envs/storage.py: nothing is
pickled, and a write that is cut off leaves the other file as it was.
"""

import json
import random
import signal
import sys
import threading
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError
from headstart.learners import GRPO, PPO

__all__ = ["Checkpoint", "HeldBack", "discard", "load", "restore", "save"]

FILES = ("checkpoint0.npz", "checkpoint1.npz")
KIND, SCHEMA = "checkpoint", 3

Checkpoint = tuple[dict[str, NDArray], dict[str, Any]]
"""Arrays, and facts as JSON values; ``facts["kept"]`` is what `save` was given."""


# ---- files ----
def save(directory: Path, trained: PPO | GRPO, kept: dict[str, Any]) -> None:
    """Write where ``trained`` is, and ``kept`` (JSON values), over the older of the two files."""
    arrays, facts = _arrays(trained), _facts(trained) | {"kept": kept}
    arrays["facts"] = np.frombuffer(json.dumps(facts, allow_nan=False).encode(), np.uint8)
    turn = facts["counters"]["num_timesteps"]
    steps = [_steps(directory / name) for name in FILES]
    storage.save_arrays(
        directory / FILES[int(np.argmin(steps))], arrays, kind=KIND, schema=SCHEMA, meta={"steps": turn}
    )


def load(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none. A damaged one is named on stderr."""
    paths = sorted((directory / name for name in FILES), key=_steps, reverse=True)
    for path in paths:
        if storage.exists(path):
            try:
                arrays, _ = storage.load_arrays(path, kind=KIND, schema=SCHEMA)
                return arrays, json.loads(arrays.pop("facts").tobytes())
            except DataError as error:
                print(f"headstart: {error} Going on from the checkpoint before it, if any.", file=sys.stderr)
    return None


def discard(directory: Path) -> None:
    """Delete both files: what they led to has been written."""
    for name in FILES:
        storage.remove(directory / name)


def _steps(path: Path) -> int:
    """Environment steps before the checkpoint, as the manifest says; -1 where there is no such file."""
    return storage.meta(path)["steps"] if storage.exists(path) else -1


# ---- what is being trained: its networks and random numbers, and what else PPO goes on from ----
def _arrays(trained: PPO | GRPO) -> dict[str, NDArray]:
    arrays: dict[str, NDArray] = {}
    for prefix, module in _modules(trained).items():
        for name, value in module.named_parameters():
            arrays[f"{prefix}__{name.replace('.', '__')}"] = value.detach().cpu().numpy()
    for prefix, optimizer in _optimizers(trained).items():
        for i, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                arrays[f"{prefix}__{i}__{name}"] = value.cpu().numpy()
    if isinstance(trained, GRPO):
        arrays["generator_words"] = trained.generator.get_state().numpy()
        return arrays
    model = trained
    assert isinstance(model._last_obs, dict)
    assert model._last_episode_starts is not None
    arrays |= {f"env__{name}": value for name, value in _env(model).state_dict().items()}
    arrays |= {f"obs__{name}": value for name, value in model._last_obs.items()}
    arrays["starts"] = np.asarray(model._last_episode_starts)
    arrays["torch_words"] = torch.get_rng_state().numpy()
    if model.device.type == "cuda":
        arrays["cuda_words"] = torch.cuda.get_rng_state(model.device).numpy()
    arrays["numpy_words"] = np.random.get_state()[1]  # type: ignore[assignment]  # noqa: NPY002
    arrays["python_words"] = np.array(random.getstate()[1], np.uint64)
    return arrays


def _facts(trained: PPO | GRPO) -> dict[str, Any]:
    facts = {
        "counters": {name: getattr(trained, name) for name in trained.COUNTERS},
        "warm_start": trained.policy.warm_start,
        "device": trained.policy.device.type,
        "rates": {name: [g["lr"] for g in o.param_groups] for name, o in _optimizers(trained).items()},
    }
    if isinstance(trained, GRPO):
        return facts | {"generator": trained.rng.bit_generator.state}
    model = trained
    _, _, *numpy_rest = np.random.get_state()  # noqa: NPY002
    assert model.ep_info_buffer is not None
    assert model.ep_success_buffer is not None
    return facts | {
        "episodes": [{name: float(episode[name]) for name in ("r", "l")} for episode in model.ep_info_buffer],
        "successes": [bool(success) for success in model.ep_success_buffer],
        "numpy": numpy_rest,
        "python": random.getstate()[2],
        # numbers of the last update, which are written after the next rollout; as text, because one may be NaN
        "said": {name: repr(float(value)) for name, value in model.logger.name_to_value.items() if value is not None},
    }


def restore(trained: PPO | GRPO, checkpoint: Checkpoint) -> None:
    """Make ``trained``, of the same settings (and a PPO with its logger), what it was."""
    arrays, facts = checkpoint
    device = trained.policy.device.type
    if facts["device"] != device:
        raise UsageError(
            f"this run was interrupted on {facts['device']}, and now it would go on on {device}, with other roundings. "
            f"Use --device {facts['device']}, or --fresh to start over."
        )
    for name, value in facts["counters"].items():
        setattr(trained, name, value)
    trained.policy.warm_start, trained.policy.fitted_anew = facts["warm_start"], False
    if isinstance(trained, PPO) and trained.anchored:
        trained.set_anchor()  # a copy, whose weights come in a moment
    for prefix, module in _modules(trained).items():
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.as_tensor(arrays[f"{prefix}__{name.replace('.', '__')}"]))
    for prefix, optimizer in _optimizers(trained).items():
        state = optimizer.state_dict()
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in arrays.items():
            if key.startswith(f"{prefix}__"):
                _, i, name = key.split("__")
                moments.setdefault(int(i), {})[name] = torch.as_tensor(value)
        for group, rate in zip(state["param_groups"], facts["rates"][prefix], strict=True):
            group["lr"] = rate
        optimizer.load_state_dict({**state, "state": moments})
    if isinstance(trained, GRPO):
        trained.generator.set_state(torch.as_tensor(arrays["generator_words"]))
        trained.rng.bit_generator.state = facts["generator"]
        return
    model, env = trained, _env(trained)
    env._reset_seeds()  # nobody resets it
    env.load_state_dict(_below(arrays, "env"))
    model._last_obs, model._last_episode_starts = _below(arrays, "obs"), arrays["starts"]
    model.ep_info_buffer = deque(facts["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(facts["successes"], maxlen=model._stats_window_size)
    model.logger.name_to_value.update({name: float(value) for name, value in facts["said"].items()})
    torch.set_rng_state(torch.as_tensor(arrays["torch_words"]))
    if model.device.type == "cuda":
        torch.cuda.set_rng_state(torch.as_tensor(arrays["cuda_words"]), model.device)
    np.random.set_state(("MT19937", arrays["numpy_words"], *facts["numpy"]))  # noqa: NPY002
    random.setstate((3, tuple(arrays["python_words"].tolist()), facts["python"]))


def _env(model: PPO) -> Any:
    assert model.env is not None
    return model.env


def _modules(trained: PPO | GRPO) -> dict[str, nn.Module]:
    if isinstance(trained, GRPO):
        return {"policy": trained.policy, "anchor": trained.anchor}
    modules: dict[str, nn.Module | None] = {"policy": trained.policy, "anchor": trained.warm_start_policy}
    modules["auxiliary"] = trained.auxiliary.head if trained.auxiliary else None
    return {name: module for name, module in modules.items() if module is not None}


def _optimizers(trained: PPO | GRPO) -> dict[str, torch.optim.Optimizer]:
    if isinstance(trained, GRPO):
        return {"optimizer": trained.optimizer}
    optimizers = {"policy_optimizer": trained.policy.optimizer, "auxiliary_optimizer": trained.auxiliary_optimizer}
    return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}


def _below(arrays: dict[str, NDArray], prefix: str) -> dict[str, NDArray]:
    return {key.removeprefix(f"{prefix}__"): value for key, value in arrays.items() if key.startswith(f"{prefix}__")}


# ---- being stopped ----
class HeldBack:
    """Ctrl-C and SIGTERM come where it suits: between two updates, after a checkpoint.

        with HeldBack() as signals:
            ...
            if signals.asked: save(...); signals.let_through()

    A second Ctrl-C does not wait. Signals that are ignored stay ignored, and threads never get any.
    """

    asked: int | None = None

    def __enter__(self) -> Self:
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self._handlers = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
        for number in self._handlers:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked == number == signal.SIGINT:
            self.let_through()
        self.asked = number

    def let_through(self) -> None:
        """Do what the signal would have done."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.asked is not None:
            signal.raise_signal(self.asked)

    def __exit__(self, *error: object) -> None:
        if error == (None, None, None):
            self.let_through()  # one that has come too late for a checkpoint
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
