"""Benchmarks of the models over tables."""
