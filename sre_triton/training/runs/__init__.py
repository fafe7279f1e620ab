"""One training from start to end, and the folder that it writes."""
