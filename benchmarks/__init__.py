"""gradbase beside eager PyTorch and its memory savers: `python -m benchmarks.run`."""
