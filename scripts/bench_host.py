"""Measure what the host costs beside a GPU, as benchmarks/host/run.py says."""

import sys

from benchmarks.host.run import main

if __name__ == "__main__":
    sys.exit(main())
