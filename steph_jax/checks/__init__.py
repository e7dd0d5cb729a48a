"""What `python -m steph_jax.check` examines, a file for each subject; each returns findings."""
