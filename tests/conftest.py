"""Before any test: one thread, as experiments have (more are slower for small networks, and sum in another order), and
a Ctrl-C that works. For all tests: a cache of their own."""

import os
import signal
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which reads it when it is imported, and for programs that tests start

# A shell starts a command in the background (`make test &`) with Ctrl-C ignored, and tests of Ctrl-C inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
