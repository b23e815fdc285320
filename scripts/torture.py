"""Attack a running server and count what breaks, as torture/run.py says."""

import sys

from torture.run import main

if __name__ == "__main__":
    sys.exit(main())
