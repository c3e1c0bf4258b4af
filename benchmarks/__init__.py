"""Scripts that measure every claim about quality, speed and memory: `python -m benchmarks [NAME]`."""
