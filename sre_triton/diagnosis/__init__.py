"""Whether the package works on this machine."""
