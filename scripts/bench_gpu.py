"""Measure the GPU path, as benchmarks/gpu/run.py says."""

import sys

from benchmarks.gpu.run import main

if __name__ == "__main__":
    sys.exit(main())
