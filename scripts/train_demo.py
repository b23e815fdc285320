"""Train the embedded demo, as demo_training/run.py says."""

import sys

from demo_training.run import main

if __name__ == "__main__":
    sys.exit(main())
