"""Start the Triton server with the multi-LoRA models, as launcher/serve.py says."""

import sys

from launcher.serve import main

if __name__ == "__main__":
    sys.exit(main())
