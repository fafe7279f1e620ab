"""``python -m sre_triton.backends.native``: builds the native kernel for this machine."""

import sys

from sre_triton.backends.native.library import build

try:
    print(build(verbose="-v" in sys.argv[1:]))
except RuntimeError as error:
    print(f"sre_triton.backends.native: {error}", file=sys.stderr)
    sys.exit(2)
