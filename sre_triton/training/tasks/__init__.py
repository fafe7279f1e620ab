"""What is learned: each task's network, loss, scores and rotation test. Imports ``data``."""
