"""Benchmarks; see README."""
