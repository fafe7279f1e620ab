"""Ring sums, then one small product, in PyTorch operations alone."""
