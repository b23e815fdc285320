"""Measure what the gateway costs, as benchmarks/gateway/run.py says."""

import sys

from benchmarks.gateway.run import main

if __name__ == "__main__":
    sys.exit(main())
