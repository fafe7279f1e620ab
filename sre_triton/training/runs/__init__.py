"""A training in its folder: the loop, checkpoints, interruption and restoring. Imports ``tasks`` and ``data``."""
