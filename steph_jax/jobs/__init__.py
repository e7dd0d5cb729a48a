"""Runs as jobs: side by side on this machine, or on a Slurm cluster. Begin with `launch`."""
