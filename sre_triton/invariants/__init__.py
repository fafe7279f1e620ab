"""Rings that see lines: scalars of derivatives, which turn and flip with the map. README.md has the derivation."""
