"""What is released, and what tries it in empty environments."""
