"""Memory that a job may use, from the files and variables of Linux, containers and Slurm."""

import pathlib
import subprocess
import sys

import pytest

from steph_jax.data.memory import memory_limit

GB = 1 << 30


@pytest.fixture
def machine() -> int:
    """The limit without control groups and variables."""
    return memory_limit(pathlib.Path("/no such folder"), {})


def write(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_machine(machine: int) -> None:
    assert 2**27 < machine < 2**50


JOB = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
V2 = f"sys/fs/cgroup{JOB}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": f"0::{JOB}\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GB}\n"}, GB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": f"0::{JOB}\n", f"{V2}/memory.max": f"{GB}\n"}, GB),
        # Slurm limits the job, three groups above its task.
        (
            {
                "proc/self/cgroup": f"0::{JOB}\n",
                f"{V2}/memory.max": "max\n",
                "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.max": f"{GB}\n",
                "sys/fs/cgroup/memory.max": f"{3 * GB}\n",
            },
            GB,
        ),
        # Version 1, whose group of memory has a place and name of its own.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/slurm/uid_1/job_7/step_0\n0::/\n",
                "sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.limit_in_bytes": f"{GB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            GB,
        ),
        # A container that sees its own group at the top and the host's path in /proc.
        (
            {
                "proc/self/cgroup": "4:memory:/docker/0123\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GB}\n",
            },
            GB,
        ),
        ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/x/memory.max": f"{GB}\n"}, GB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2**60}\n"}, None),
    ],
)
def test_control_groups(tmp_path, machine: int, files: dict[str, str], expected: int) -> None:
    assert memory_limit(write(tmp_path, files), {}) == (expected or machine)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "1024"}, GB),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # the whole node
        ({"SLURM_MEM_PER_CPU": "256", "SLURM_CPUS_ON_NODE": "4"}, GB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_PER_TASK": "2"}, GB),
        ({"SLURM_MEM_PER_CPU": "256"}, None),
        ({"SLURM_MEM_PER_NODE": "lots"}, None),
    ],
)
def test_slurm(tmp_path, machine: int, variables: dict[str, str], expected: int) -> None:
    assert memory_limit(tmp_path, variables) == (expected or machine)


def test_limit_of_the_address_space(machine: int) -> None:
    limit = machine // 2
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "from steph_jax.data.memory import memory_limit; print(memory_limit())"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert int(answer.stdout) <= limit
