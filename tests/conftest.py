"""Before any test: one thread, as experiments have. More make small networks slower and sums come out in other orders."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which reads it when it is imported, and for programs that tests start
