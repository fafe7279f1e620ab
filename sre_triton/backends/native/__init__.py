"""The native CPU path: ring convolutions by a C++ kernel that is compiled on the machine it runs on.

It is optional. The package is pure Python; ``sre-triton build-native`` builds the kernel once, with a C++
compiler and :mod:`torch.utils.cpp_extension`, and every later process finds it. Without it the other paths do the
same work more slowly.
"""

from sre_triton.backends.native.library import build, missing

__all__ = ["build", "missing"]
