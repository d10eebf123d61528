"""Processes that work for another one, and how many at a time."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["available_cores", "end_with_parent"]


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has; macOS does not say which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Called in a process that multiprocessing has started: it ends when its parent does, however that ends.

    A parent that is killed cannot tell its children. They would wait for work for ever, and hold what a fork has
    inherited: memory, and the locks of directories.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
