"""Environments of the version matrix, and what runs the suite in them."""
