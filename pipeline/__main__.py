"""`python -m pipeline` is the `avqa` command, for environments in which it is not installed."""

import sys

from pipeline.cli import main

sys.exit(main())
