"""Metrics and answer parsing that several benchmarks share."""
