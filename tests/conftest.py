"""Before any test: one thread, as experiments have. More are slower for small networks, and sum in another order."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which reads it when it is imported, and for programs that tests start
