"""One small file per method: what differs between methods, and nothing else."""
