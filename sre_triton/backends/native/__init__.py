"""The native CPU backend: ring convolutions by a C++ kernel that is compiled on the machine it runs on.

It is optional. The package is pure Python; ``sre-triton build-native`` builds the kernel once, with a C++
compiler and :mod:`torch.utils.cpp_extension`, and every later process finds it. Without it the other backends do the
same work more slowly.
"""

from sre_triton.backends.native.library import advice, build, missing
from sre_triton.backends.native.passes import backward, forward, fused_forward, refusal, transpose, weight_grad

__all__ = ["advice", "backward", "build", "forward", "fused_forward", "missing", "refusal", "transpose", "weight_grad"]
