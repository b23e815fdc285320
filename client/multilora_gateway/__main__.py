"""`python -m multilora_gateway`"""

import sys

from multilora_gateway.cli import main

sys.exit(main())
