"""Training: what runs in a worker's child process, and what starts it. See `base`."""
