"""The boundary to PyTorch: library operators, their gradients, and the checks of what they are given."""
