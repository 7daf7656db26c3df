"""What `python -m benches.gpu` checks and measures on an NVIDIA GPU."""
