"""The backends by the names under which they are requested. A new one is a folder beside the others and a line here.

Importing this module imports no Triton: that backend does so when it is first asked for something.
"""

from __future__ import annotations

from sre_triton.backends import dense, expansion, native, ringwise, triton
from sre_triton.backends.base import Backend

__all__ = ["BACKENDS"]

BACKENDS: dict[str, Backend] = {
    "dense": dense,
    "ringwise": ringwise,
    "native": native,
    "triton": triton,
}

expansion.use_kernels(triton)
