"""`python -m pyasync` is the command `pyasync`."""

from __future__ import annotations

import sys

from pyasync.cli import main

if __name__ == "__main__":
    sys.exit(main())
