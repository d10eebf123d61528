#!/bin/sh
# On a machine with a CUDA device, in under ten minutes: does CUDA compute what the CPU computes, how fast is each, and
# where does the time go?
#
#     sh experiments/gpu_check.sh            in an environment in which `pip install -e .[dev]` has been done
set -eu
cd "$(dirname "$0")/.."
python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "PyTorch finds no CUDA device: see `headstart doctor`.")'
python -m pytest tests/learners/test_cuda.py tests/learners/test_together.py
python experiments/throughput.py "$@"
