"""Measure what adapters cost while they live, as benchmarks/adapters/run.py says."""

import sys

from benchmarks.adapters.run import main

if __name__ == "__main__":
    sys.exit(main())
