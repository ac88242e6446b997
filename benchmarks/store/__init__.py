"""Benchmarks of the parameter store and its engines."""
