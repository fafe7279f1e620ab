"""Found by every Python process that has this folder on its path: see `bench.pretended_gpu.environment`."""

import sys

# The resource tracker of multiprocessing has no use for a GPU, nor for a second of imports.
if not any("resource_tracker" in argument for argument in sys.orig_argv):
    from bench.pretended_gpu import activate_from_environment

    activate_from_environment()
