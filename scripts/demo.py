"""Start a Triton server and stream from every demo adapter, as launcher/demo.py says."""

import sys

from launcher.demo import main

if __name__ == "__main__":
    sys.exit(main())
