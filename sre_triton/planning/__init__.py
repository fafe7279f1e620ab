"""Which backend computes a call, and why."""
