"""What `python -m steph_jax.check` looks at, a file for each subject; each returns findings."""
