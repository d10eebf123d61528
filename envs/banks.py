"""Banks: many levels of one environment, imported once and kept on disk.

    levels = bank("MiniGrid-DoorKey-8x8-v0", "train", 1000)

A level belongs to the split "train", "validation" or "test" by its own hash. So the splits are disjoint whatever the
seeds: when two seeds give the same level, both are in the same split.

Rows are described in engine.py, how a level becomes one in levels.py. Shapes: N levels, B bytes in a row.
"""

import contextlib
import math
import multiprocessing
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from headstart.envs import engine, storage
from headstart.envs.engine import Rows
from headstart.envs.errors import Busy, DataError, UsageError, check_numbers
from headstart.envs.levels import EndlessReset, import_level, level_hash, reset_level
from headstart.envs.processes import available_cores, end_with_parent
from headstart.envs.registry import did_you_mean
from headstart.envs.spaces import GRID, FrameSpace

__all__ = ["Levels", "bank", "default_cache", "import_seeds", "split_of"]

SPLITS = {"test": 2, "validation": 1, "train": 5}  # of eight levels
BLOCK = 256  # seeds in one file of a bank
PATIENCE = 5.0  # seconds, before it is said who is waited for
KIND = "headstart levels"


@dataclass(frozen=True)
class Levels:
    """Levels of one environment, ready to be played.

    env_id: what minigrid calls the environment.
    rows: (N, B) uint8, states at the start of an episode.
    mission: (N,) str, the instruction or goal in words.
    seed: (N,) int64, `reset(seed)` made the level.
    """

    env_id: str
    rows: Rows
    mission: NDArray[np.str_]
    seed: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.mission) == len(self.seed):
            raise ValueError(f"{len(self.rows)} rows, {len(self.mission)} missions, {len(self.seed)} seeds")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> "Levels":
        """Some of the levels; `index` is a slice, a mask or an array of numbers."""
        return Levels(self.env_id, self.rows[index], self.mission[index], self.seed[index])

    def frame_space(self, history: int) -> FrameSpace:
        """The frames that an agent is shown there."""
        return FrameSpace(GRID, history + 1, env_id=self.env_id)

    @property
    def horizon(self) -> int:
        """Minigrid's own step limit, of the level that has the highest."""
        return int(engine.max_steps(self.rows).max())


def import_seeds(env_id: str, seeds: Iterable[int]) -> Levels:
    """The levels that `reset(seed)` makes, one for each seed, without any cache."""
    return _import_seeds(env_id, seeds, skip_endless=False)


def _import_seeds(env_id: str, seeds: Iterable[int], skip_endless: bool) -> Levels:
    env = gymnasium.make(env_id, disable_env_checker=True)
    rows, mission, seed = [], [], []
    for n in seeds:
        try:
            reset_level(env, n)
        except EndlessReset:
            if skip_endless:
                continue
            raise
        rows.append(import_level(env))
        mission.append(cast(Any, env.unwrapped).mission)
        seed.append(n)
    if not rows:
        raise UsageError(f"{env_id}: there is no level to import, not one of the seeds gives one.")
    length = max(map(len, rows))
    if any(len(row) != length for row in rows):
        raise UsageError(
            f"{env_id}: its levels need rows of different lengths, so they cannot be one bank. "
            "Give the environment the same size and number of objects at every reset."
        )
    return Levels(env_id, np.stack(rows), np.array(mission), np.array(seed, np.int64))


# ---- banks ----
def split_of(hashes: NDArray[np.uint64]) -> NDArray[np.str_]:
    """The split (N,) that levels belong to: of eight, two are "test", one "validation" and five "train"."""
    return np.repeat(list(SPLITS), list(SPLITS.values()))[(hashes % np.uint64(8)).astype(np.int64)]


def bank(
    env_id: str,
    split: str,
    n: int,
    first_seed: int = 0,
    *,
    cache: str | Path | None = None,
    processes: int | None = None,
) -> Levels:
    """The first `n` levels of a split, in the order of their seeds from `first_seed` on.

    Seeds are imported in blocks of 256 by `processes` processes (default: one for each core) and kept in
    `cache` (default: $HEADSTART_CACHE, else ~/.cache/headstart), where all splits share them. Every call
    makes one of the levels again and compares: a bank that no longer fits its environment is refused.
    Seeds for which minigrid never finishes a level (BabyAI-SynthS5R2 has some) are left out.
    """
    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    n, first_seed = check_numbers(env_id, n=n, first_seed=first_seed)
    blocks = _Blocks(env_id, Path(cache) if cache is not None else default_cache(), processes)
    share = SPLITS[split] / 8
    parts: list[Levels] = []
    block, found = first_seed // BLOCK, 0
    while found < n:
        wanted = math.ceil((n - found) / (BLOCK * share))
        for levels in blocks.get(range(block, block + wanted)):
            chosen = (split_of(level_hash(levels.rows)) == split) & (levels.seed >= first_seed)
            parts.append(levels[chosen])
        block, found = block + wanted, sum(map(len, parts))
        if found == 0 and block * BLOCK - first_seed >= 4 * BLOCK:
            raise DataError(
                f"{env_id}: no level is in the split {split!r}, among {block * BLOCK - first_seed} seeds. "
                "It has too few different levels to be split: use an environment whose levels vary."
            )
    if len({part.rows.shape[1] for part in parts}) > 1:
        raise UsageError(f"{env_id}: its levels need rows of different lengths, so they cannot be one bank.")
    rows, mission, seed = (
        np.concatenate([getattr(part, name) for part in parts])[:n] for name in ("rows", "mission", "seed")
    )
    blocks.check(Levels(env_id, rows, mission, seed))
    return Levels(env_id, rows, mission, seed)


def default_cache() -> Path:
    """Where banks are kept: $HEADSTART_CACHE, else the user's cache directory."""
    chosen = os.environ.get("HEADSTART_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"


class _Blocks:
    """The cached levels of one environment: block k has the seeds from k * BLOCK on, and is one file."""

    def __init__(self, env_id: str, cache: Path, processes: int | None) -> None:
        self.env_id = env_id
        self.processes = processes or available_cores()
        minigrid = version("minigrid")
        if env_id not in gymnasium.registry:
            advice = did_you_mean(env_id, gymnasium.registry) or "Register it, or import the module that does."
            raise UsageError(f"{env_id}: no environment of this name is registered. {advice}")
        name = env_id.replace("/", "-").replace(":", "-")
        self.directory = cache / "levels" / f"{name} rows {engine.ROW_VERSION} minigrid {minigrid}"
        spec = gymnasium.registry[env_id]
        maker = cast(Any, spec.entry_point)
        maker = maker if isinstance(maker, str) else f"{maker.__module__}:{maker.__qualname__}"
        self.facts = {"env_id": env_id, "made_by": f"{maker} {spec.kwargs}", "minigrid": minigrid}

    def get(self, numbers: range) -> list[Levels]:
        missing = [number for number in numbers if not storage.exists(self._path(number))]
        if missing:
            with self._writer():
                self._build([number for number in missing if not storage.exists(self._path(number))])
        return [self._load(number) for number in numbers]

    def check(self, levels: Levels) -> None:
        """Make one level again: code that was changed under the same name and version shows here."""
        again = import_seeds(self.env_id, levels.seed[:1].tolist())
        if not np.array_equal(again.rows, levels.rows[:1]) or again.mission[0] != levels.mission[0]:
            raise DataError(
                f"{self.directory}: {self.env_id} makes another level of seed {levels.seed[0]} now than when "
                "this bank was made: its code has changed. Delete the directory, and the bank is made anew."
            )

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.npz"

    def _build(self, numbers: list[int]) -> None:
        text, total = f"levels of {self.env_id}", len(numbers) * BLOCK
        with (
            tqdm(total=total, desc=text, unit="level", delay=2, disable=None) as bar,
            self._workers(len(numbers)) as imported,
        ):
            for number, levels in zip(numbers, imported(self._import, numbers), strict=True):
                self._save(number, levels)
                bar.update(BLOCK)

    @contextlib.contextmanager
    def _workers(self, n_blocks: int) -> Iterator[Callable[..., Iterable[Levels]]]:
        """A map() that spreads over processes, if there is enough to do for two."""
        workers = min(self.processes, n_blocks)
        if workers < 2:
            yield map
            return
        # fork: the children know what the caller has registered, and need no __main__ guard. They only import
        # levels, so no thread that the fork leaves behind (of torch, of TensorBoard) can hold what they need. They
        # inherit the lock of the directory, and must not outlive who has taken it.
        with (
            warnings.catch_warnings(),
            ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), end_with_parent) as pool,
        ):
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield pool.map

    def _import(self, number: int) -> Levels:
        return _import_seeds(self.env_id, range(number * BLOCK, (number + 1) * BLOCK), skip_endless=True)

    def _save(self, number: int, levels: Levels) -> None:
        """Rows and missions are compressed: grids are mostly walls, and one level's row is like the next."""
        text = "\n".join(levels.mission).encode()
        arrays = {
            "rows": np.frombuffer(zlib.compress(levels.rows.tobytes(), 1), np.uint8),
            "mission": np.frombuffer(zlib.compress(text), np.uint8),
            "seed": levels.seed,
        }
        facts = {**self.facts, "row_length": levels.rows.shape[1], "mission_length": len(text)}
        storage.save_arrays(self._path(number), arrays, kind=KIND, schema=engine.ROW_VERSION, meta=facts)

    def _load(self, number: int) -> Levels:
        path = self._path(number)
        arrays, facts = storage.load_arrays(path, kind=KIND, schema=engine.ROW_VERSION)
        for name, fact in self.facts.items():
            if facts.get(name) != fact:
                raise DataError(
                    f"{path}: has levels of {name} {facts.get(name)!r}, not {fact!r}. "
                    f"Delete {self.directory}, and the bank is made anew."
                )
        seed, row_length = arrays["seed"], facts["row_length"]
        rows = _decompress(arrays["rows"], len(seed) * row_length)
        mission = _decompress(arrays["mission"], facts["mission_length"]).decode().split("\n")
        rows = np.frombuffer(rows, np.uint8).reshape(len(seed), row_length)
        return Levels(self.env_id, rows, np.array(mission), seed)

    @contextlib.contextmanager
    def _writer(self) -> Iterator[None]:
        """Hold the directory's lock; another process that makes the same bank is waited for, and named."""
        started, said = time.monotonic(), False
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(storage.lock(self.directory))
                except Busy as busy:
                    if not said and time.monotonic() - started > PATIENCE:
                        print(f"headstart: waiting for levels of {self.env_id}: {busy}", file=sys.stderr, flush=True)
                        said = True
                    time.sleep(0.1)
                    continue
                except UsageError as error:
                    raise UsageError(
                        f"{error} Levels are kept there: set HEADSTART_CACHE to a directory that you can write to."
                    ) from error
                yield
                return


def _decompress(content: NDArray[np.uint8], size: int) -> bytes:
    """Never more than the size that the manifest states."""
    return zlib.decompressobj().decompress(content.tobytes(), size)
