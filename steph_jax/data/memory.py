"""How much memory this process may use: less than the machine has, in a container or a job."""

import os
import pathlib
import resource
from collections.abc import Iterator, Mapping

#: What Slurm's variables of memory count in.
_SLURM_UNIT = 1 << 20


def memory_limit(
    root: pathlib.Path = pathlib.Path("/"), environment: Mapping[str, str] = os.environ
) -> int:
    """Bytes that this process may use.

    The least of the machine's memory, the limits of its control groups (of its own one and all
    above it, where Slurm and containers set theirs), Slurm's variables and `ulimit -v`.

    Args:
        root: below which /proc and /sys are.
        environment: variables.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += _of_control_groups(root)
    limits += _of_slurm(environment)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


def _of_control_groups(root: pathlib.Path) -> Iterator[int]:
    """The limits of this process's control groups and of those above them, of both versions."""
    groups = _text(root / "proc/self/cgroup")
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Within a container the path may be the host's, of which only the end is there.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for length in range(len(parts), -1, -1):
            yield from _number(base.joinpath(*parts[:length], name))


def _of_slurm(environment: Mapping[str, str]) -> Iterator[int]:
    """The memory of a Slurm job on this node; 0 is all of it."""
    for_node = environment.get("SLURM_MEM_PER_NODE", "")
    if for_node.isdigit() and int(for_node):
        yield int(for_node) * _SLURM_UNIT
    for_cpu = environment.get("SLURM_MEM_PER_CPU", "")
    cpus = environment.get("SLURM_CPUS_ON_NODE") or environment.get("SLURM_CPUS_PER_TASK", "")
    if for_cpu.isdigit() and int(for_cpu) and cpus.isdigit() and int(cpus):
        yield int(for_cpu) * int(cpus) * _SLURM_UNIT


def _number(path: pathlib.Path) -> Iterator[int]:
    """The number in a file, if it holds one: no limit is a word in version 2."""
    text = _text(path).strip()
    if text.isdigit():
        yield int(text)


def _text(path: pathlib.Path) -> str:
    """What a file holds; nothing where it is absent or kept from this user."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
