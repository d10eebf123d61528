"""Processes end with their parent, however that ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headstart.envs import storage

CODE = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from headstart.envs import storage
from headstart.envs.processes import end_with_parent

def work(n):
    os.write(1, b"%d\\n" % os.getpid())  # at once: two write here
    time.sleep(60)

if __name__ == "__main__":
    with storage.lock("held"), ProcessPoolExecutor(
        2, multiprocessing.get_context(sys.argv[1]), end_with_parent
    ) as pool:
        list(pool.map(work, range(2)))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_parent_leaves_nobody_behind(method: str, tmp_path: Path) -> None:
    """Nor the locks that it has held, which a fork inherits."""
    (tmp_path / "script.py").write_text(CODE)
    command = [sys.executable, "script.py", method]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        children = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
        process.wait()
        until = time.monotonic() + 30
        try:
            while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < until:
                time.sleep(0.05)
            assert not any(Path(f"/proc/{child}").exists() for child in children)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    with storage.lock(tmp_path / "held"):
        pass
