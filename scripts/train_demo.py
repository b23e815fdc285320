"""Train the embedded demo, as demo_training/train.py says."""

import sys

from demo_training.train import main

if __name__ == "__main__":
    sys.exit(main())
