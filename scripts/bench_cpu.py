"""Measure decoding on a CPU, as benchmarks/cpu/run.py says."""

import sys

from benchmarks.cpu.run import main

if __name__ == "__main__":
    sys.exit(main())
