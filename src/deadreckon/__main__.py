"""``python -m deadreckon``."""

import sys

from deadreckon.cli.main import main

sys.exit(main())
