"""`headstart doctor`: what is installed, what can be written, and whether the engine agrees with minigrid.

    ok    python                 3.11.2 (/usr/bin/python3) on Linux-6.1-x86_64
    ok    numpy>=1.26            2.4.6
    WRONG free disk              0.1 GB at runs: free at least 1.0 GB

A check is a function that returns what it found, or raises a HeadstartError that says what to do. It writes nothing
that stays, except numba's cache of the compiled engine. The exit code is 4 where anything is WRONG.
"""

import contextlib
import io
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from headstart.envs.errors import EnvironmentFailed, HeadstartError, UsageError
from headstart.envs.processes import available_cores

__all__ = ["check_writable", "doctor"]

FREE_DISK = 1e9  # bytes: an experiment with ten seeds and its banks of levels
SELF_TEST = ("MiniGrid-DoorKey-8x8-v0", "BabyAI-GoToImpUnlock-v0")  # a rule of its own, and an instruction
SELF_TEST_STEPS, SELF_TEST_EPISODE = 300, 40
NVIDIA_DRIVER = Path("/dev/nvidiactl")


def doctor(out: Path) -> int:
    """Run every check and print a line for each; returns the exit code, 0 if all is well, otherwise 4."""
    wrong = 0
    for name, check in _checks(out):
        try:
            print(f"ok    {name:<22} {check()}", flush=True)
        except Exception as error:  # whatever it is, the other checks are worth running
            why = str(error) if isinstance(error, HeadstartError) else f"{type(error).__name__}: {error}"
            print(f"WRONG {name:<22} {why}", flush=True)
            wrong += 1
    print(f"{wrong} of these need your attention." if wrong else "All is well.")
    return EnvironmentFailed.exit_code if wrong else 0


def _checks(out: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", _python
    yield "headstart", lambda: f"{metadata.version('headstart')} in {Path(__file__).parents[1]}"
    for requirement in metadata.requires("headstart") or []:
        if "extra ==" not in requirement:
            yield requirement.split(";")[0].strip(), lambda requirement=requirement: _package(requirement)
    yield "cores", _cores
    yield "torch", _torch
    yield "compiled engine", _compiled
    yield "levels", _levels
    yield "results", lambda: check_writable(out, f"results in {out}")
    yield "free disk", lambda: _free_disk(out)
    for env_id in SELF_TEST:
        yield "self-test", lambda env_id=env_id: _self_test(env_id)


# ---- what is installed ----
def _python() -> str:
    from packaging.specifiers import SpecifierSet

    wanted = SpecifierSet(metadata.metadata("headstart")["Requires-Python"])
    found = platform.python_version()
    if not wanted.contains(found, prereleases=True):
        raise UsageError(f"{found}, but headstart needs {wanted}: make the environment with another Python.")
    return f"{found} ({sys.executable}) on {platform.platform()}"


def _package(requirement: str) -> str:
    """Whether an installed version is in the range that the metadata of headstart names."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        raise UsageError(f"is not installed. Type: pip install '{wanted}'") from None
    if not wanted.specifier.contains(found, prereleases=True):
        raise UsageError(f"{found} is installed. Type: pip install '{wanted}'")
    return found


# ---- the machine ----
def _cores() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{available_cores()} of {os.cpu_count()}, {memory:.0f} GB of memory"


def _torch() -> str:
    import torch

    threads = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())}
        ones = torch.ones(64, 64, device="cuda")
        if not torch.equal((ones @ ones).cpu(), torch.full((64, 64), 64.0)):  # a driver may be there and not work
            raise EnvironmentFailed(f"{threads}; CUDA multiplies wrongly on {names}. Use --device cpu.")
        return f"{threads}, CUDA {torch.version.cuda} on {', '.join(names)}"
    if torch.version.cuda and NVIDIA_DRIVER.exists():
        raise EnvironmentFailed(
            f"{threads}; there is an NVIDIA driver, but PyTorch (for CUDA {torch.version.cuda}) finds no device: "
            "update the driver, install the PyTorch that fits it, or use --device cpu."
        )
    return f"{threads}, no CUDA device: --device auto takes the CPU"


def _compiled() -> str:
    from headstart.envs import engine

    directory = engine._step_rows.stats.cache_path
    if directory is None:
        raise UsageError(
            "no directory for numba's cache can be written to, so every process compiles for a minute. "
            "Set NUMBA_CACHE_DIR to a directory that you can write to."
        )
    return check_writable(Path(directory), "numba's cache (NUMBA_CACHE_DIR)")


def _levels() -> str:
    from headstart.envs.banks import default_cache

    directory = default_cache()
    check_writable(directory, "the cache of levels (HEADSTART_CACHE)")
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return f"{size / 1e6:.1f} MB in {directory} (made again when deleted)"


# ---- disk ----
def _nearest(directory: Path) -> Path:
    """The directory, or what is there on the way to it."""
    return next(path for path in (directory, *directory.parents) if path.exists())


def check_writable(directory: Path, what: str) -> str:
    """That files can be made there, now or once the directory has been made; leaves nothing behind.

    Returns the directory in words. Raises UsageError, which begins with `what`.
    """
    try:
        nearest = _nearest(directory)
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        raise UsageError(f"{what}: {directory} cannot be written to: {why}. Choose another directory.") from error
    return f"{directory} can be written to"


def _free_disk(out: Path) -> str:
    free = shutil.disk_usage(_nearest(out)).free
    if free < FREE_DISK:
        raise UsageError(f"{free / 1e9:.1f} GB at {out}: free at least {FREE_DISK / 1e9:.1f} GB.")
    return f"{free / 1e9:.0f} GB at {out}"


# ---- the engine ----
def _self_test(env_id: str) -> str:
    """Import levels of minigrid, take the same random steps there and in the engine, and compare what is seen."""
    import gymnasium
    import minigrid.envs  # noqa: F401  registers the ids
    import numpy as np

    from headstart.envs import engine
    from headstart.envs.levels import import_level

    env = gymnasium.make(env_id, max_steps=SELF_TEST_EPISODE, disable_env_checker=True)  # short: ends are seen too
    rng = np.random.default_rng(0)
    started, ended, seed = time.perf_counter(), True, 0
    rows = np.zeros((0, 0), np.uint8)
    for step in range(SELF_TEST_STEPS):
        if ended:
            with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a level
                obs, _ = env.reset(seed=seed)
            rows, seed = import_level(env)[None], seed + 1
            wanted = got = (False, False)
        else:
            action = int(rng.integers(engine.N_ACTIONS))
            obs, _, *wanted, _ = env.step(action)
            got = [bool(end[0]) for end in engine.step(rows, np.array([action]))]
        image = obs["image"].reshape(49, 3).astype(int)
        frame = [*(image @ (engine.TYPE_STEP, engine.COLOR_STEP, 1)), obs["direction"]]
        if list(got) != list(wanted) or not np.array_equal(engine.observe(rows)[0], frame):
            raise EnvironmentFailed(
                f"{env_id}: step {step} of seed {seed - 1} differs from minigrid {metadata.version('minigrid')}. "
                "Install the version of minigrid that constraints.txt names, and report this."
            )
        ended = any(wanted)
    return f"{env_id}: {SELF_TEST_STEPS} steps as in minigrid ({time.perf_counter() - started:.1f} s)"
