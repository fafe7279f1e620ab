"""``python -m sre_triton``: see :mod:`sre_triton.cli`."""

import sys

from sre_triton.cli import main

if __name__ == "__main__":
    sys.exit(main())
