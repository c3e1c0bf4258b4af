"""Claims about quality, speed and memory, each from a script that anyone can run: `python -m benchmarks [NAME]`."""
