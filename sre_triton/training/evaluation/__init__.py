"""What trained networks do when the image turns: tables and pictures. Imports ``runs``, ``tasks``, ``data``."""
