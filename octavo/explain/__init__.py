"""What happened, why, and what to change: recordings, read."""
