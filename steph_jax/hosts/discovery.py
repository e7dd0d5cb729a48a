"""Which other processes this one was started with: by JAX's variables, srun or mpirun.

JAX can find this too, with other results: it takes a job array's element of one task for a
cluster, and gives each of several tasks of a node a GPU by its number, even where a task sees only
its own.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

#: JAX's own variables; all three, or the address alone where the launcher tells the rest.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
#: Ports that a system gives to nobody by itself but for a short time: the first, and their number.
_PORTS = 61440, 4096
#: Variables of Open MPI, and of MPICH and its relatives: how many processes there are, which this
#: one is, and the same on its machine.
_MPI = (
    (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
)


class Place(NamedTuple):
    """A process among those of a run.

    Attributes:
        coordinator: HOST:PORT of process 0.
        processes: how many there are.
        process: which of them this one is, from 0.
        local_devices: numbers of the GPUs of this machine that are its own; None for all.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: list[int] | None = None


class _Launched(NamedTuple):
    """What a launcher tells a process.

    Attributes:
        processes, process: as in `Place`.
        local_processes, local_process: the same on this machine.
        coordinator: HOST:PORT of process 0; "" where it does not tell.
    """

    processes: int
    process: int
    local_processes: int
    local_process: int
    coordinator: str


def place_of_this_process(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process; None where it was started alone.

    Raises:
        ValueError: variables that contradict each other, or are no numbers; an address is missing.
    """
    launched = _by_slurm(environment) or _by_mpi(environment)
    address = environment.get(ADDRESS, "")
    named = [name for name in (COUNT, INDEX) if environment.get(name)]
    if named and not (address and len(named) == 2):
        raise ValueError(
            f"{named[0]} is set: expected {ADDRESS}=HOST:PORT, {COUNT} and {INDEX} together"
        )
    if address and not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"{ADDRESS}: expected HOST:PORT of process 0, found {address!r}")
    if named:
        number, index = _whole(environment, COUNT), _whole(environment, INDEX)
        if index >= number:
            raise ValueError(f"{INDEX} is from 0 to {COUNT} - 1; found {index} of {number}")
        devices = None if launched is None else _own_devices(environment, launched)
        return Place(address, number, index, devices) if number > 1 else None
    if launched is None:
        if address:
            raise ValueError(
                f"{ADDRESS} is set: expected {COUNT} and {INDEX} with it, or srun or mpirun"
            )
        return None
    if launched.processes == 1:
        return None
    coordinator = address or launched.coordinator
    if not coordinator:
        raise ValueError(
            f"started by mpirun on several hosts: set {ADDRESS}=HOST:PORT, HOST being that of rank "
            "0, and pass it to all (mpirun -x, or -genv)"
        )
    return Place(
        coordinator, launched.processes, launched.process, _own_devices(environment, launched)
    )


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[int]:
    """Numbers of this machine's GPUs that this process may use."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [int(word) for word in visible.split(",") if word.strip().isdecimal()]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False).stdout
    return list(range(sum(line.startswith("GPU ") for line in listed.splitlines())))


def _by_slurm(environment: Mapping[str, str]) -> _Launched | None:
    """What srun tells; None outside of it, in the script of a job too."""
    nodes = environment.get("SLURM_STEP_NODELIST")
    if not nodes:
        return None
    name = "SLURM_STEP_NUM_TASKS" if environment.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    number = _whole(environment, name) if environment.get(name) else 1
    if number == 1:
        return None
    first, ports = _PORTS
    port = first + _whole(environment, "SLURM_JOB_ID") % ports
    per_node = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(environment.get("SLURM_NODEID", "0"))
    return _Launched(
        number,
        _whole(environment, "SLURM_PROCID"),
        per_node[node] if node < len(per_node) else 1,
        int(environment.get("SLURM_LOCALID", "0")),
        f"{_first_node(nodes)}:{port}",
    )


def _first_node(nodes: str) -> str:
    """n01 of Slurm's n[01-03,07],m1."""
    match = re.match(r"([^,\[]+)(?:\[([^],-]+)[^]]*\]([^,]*))?", nodes)
    return nodes if match is None else "".join(part or "" for part in match.groups())


def _tasks_per_node(text: str) -> list[int]:
    """[2, 2, 1] of Slurm's 2(x2),1."""
    counts: list[int] = []
    for match in re.finditer(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _by_mpi(environment: Mapping[str, str]) -> _Launched | None:
    """What mpirun tells; None outside of it."""
    for number, index, local_number, local_index in _MPI:
        if environment.get(number) and environment.get(index):
            size = _whole(environment, number)
            local_size = int(environment.get(local_number, "1"))
            first, ports = _PORTS
            # All processes of one machine have one parent.
            here = f"127.0.0.1:{first + os.getppid() % ports}" if local_size == size else ""
            rank, local_rank = _whole(environment, index), int(environment.get(local_index, "0"))
            return _Launched(size, rank, local_size, local_rank, here)
    return None


def _own_devices(environment: Mapping[str, str], launched: _Launched) -> list[int] | None:
    """A process's share of the GPUs that it sees; None for all, where it sees but its own."""
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    each = len(visible_gpus(environment)) // max(1, launched.local_processes)
    if launched.local_processes == 1 or each == 0:
        return None
    return list(range(launched.local_process * each, (launched.local_process + 1) * each))


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, found {text!r}")
    return int(text)
