"""Entry point of `python -m benchmarks.parity`."""

import sys

from benchmarks.parity.command import main

sys.exit(main())
