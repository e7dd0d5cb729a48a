"""One model on several hosts: how its processes meet, agree, write once, and end together.

    srun -n 2 python -m steph_jax.train --config C --workdir W

Every process runs the same program on the same settings, and JAX shares each batch over the devices
of all (`engine.placement`). What is not computed goes through process 0, the writer: `is_writer`
and `written` guard what is written, `agreed` is for what a look at the disk decides, and `barrier`
keeps the others from reading what is not there yet. A program that was started alone is its own
writer, and nothing here waits.
"""

from steph_jax.hosts.processes import (
    agreed,
    barrier,
    count,
    index,
    is_writer,
    joined,
    of_all,
    written,
)

__all__ = ["agreed", "barrier", "count", "index", "is_writer", "joined", "of_all", "written"]
