"""A Slurm of two nodes on this machine, each with one core; its daemons end with the tests.

Jobs of the partition `urgent` take nodes from those of `p`, which have some seconds to end and are
queued again.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator

from hosts_of_a_run import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("n1", "n2")
#: Seconds until the nodes must be there.
_START = 60.0
#: A requeued job waits until the credential of its first start has expired; 120 s by default.
_EXPIRY = 5
#: Seconds that a preempted job has to end, and one that is cancelled.
_GRACE = _KILL = 120


class Unavailable(Exception):
    """There can be no Slurm here; says why."""


def reason_against() -> str:
    """Why there can be no Slurm here; "" where there can."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "the daemons of Slurm are started by root alone"
    return ""


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Starts the daemons; yields the environment in which commands find them.

    Args:
        folder: of their files; new.

    Raises:
        Unavailable: they do not start here.
    """
    if reason := reason_against():
        raise Unavailable(reason)
    config = _write_config(folder)
    environment = os.environ | {"SLURM_CONF": str(config)}
    environment["PATH"] = _path()
    munge = [f"--{name}={folder / file}" for name, file in _MUNGE.items()]
    commands = {
        "munged": ["munged", "--foreground", "--force", "--num-threads=1", *munge],
        "slurmctld": ["slurmctld", "-D", "-f", str(config)],
        **{node: ["slurmd", "-D", "-f", str(config), "-N", node] for node in NODES},
    }
    with contextlib.ExitStack() as stack:
        daemons = []
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.out").open("wb"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_end, daemon)
            daemons.append(daemon)
            if name == "munged":
                _wait_for(lambda: (folder / _MUNGE["socket"]).exists(), daemons, folder)
        _wait_for(lambda: _idle_nodes(environment) == len(NODES), daemons, folder)
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, check=True)
        _wait_for(lambda: _idle_nodes(environment) == len(NODES), daemons, folder)


_MUNGE = {
    "socket": "munge.socket",
    "key-file": "munge.key",
    "pid-file": "munge.pid",
    "log-file": "munge.log",
    "seed-file": "munge.seed",
}


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def _program(name: str) -> str | None:
    return shutil.which(name, path=_path())


def _write_config(folder: pathlib.Path) -> pathlib.Path:
    """Writes the key of munge and the files of Slurm; returns slurm.conf."""
    folder.mkdir(mode=0o755)
    (folder / _MUNGE["key-file"]).write_bytes(os.urandom(128))
    (folder / _MUNGE["key-file"]).chmod(0o400)
    # Where a version of Slurm looks for cgroups, which it needs for nothing here.
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    if (major, minor) >= (23, 11):
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    host = os.uname().nodename.split(".")[0]
    ports = [free_port() for _ in range(3)]
    lines = [
        "ClusterName=tests",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder / _MUNGE['socket']},cred_expire={_EXPIRY}",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "AccountingStorageType=accounting_storage/none",
        "ReturnToService=2",
        f"KillWait={_KILL}",
        # Soon, not after some seconds: when jobs end, and when new ones come.
        "SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=2",
        f"StateSaveLocation={folder / 'state'}",
        f"SlurmdSpoolDir={folder / 'spool-%n'}",
        f"SlurmctldPidFile={folder / 'slurmctld.pid'}",
        f"SlurmdPidFile={folder / '%n.pid'}",
        f"SlurmctldLogFile={folder / 'slurmctld.log'}",
        f"SlurmdLogFile={folder / '%n.log'}",
        *(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 "
            "RealMemory=1000"
            for node, port in zip(NODES, ports[1:], strict=True)
        ),
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        f"PartitionName=p Nodes={','.join(NODES)} Default=YES PriorityTier=1 GraceTime={_GRACE}",
        f"PartitionName=urgent Nodes={','.join(NODES)} PriorityTier=2 PreemptMode=OFF",
    ]
    config = folder / "slurm.conf"
    config.write_text("\n".join(lines) + "\n")
    return config


def _idle_nodes(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return len(set(answer.stdout.split())) if answer.returncode == 0 else 0


def _wait_for(condition, daemons: list["subprocess.Popen[bytes]"], folder: pathlib.Path) -> None:
    deadline = time.monotonic() + _START
    while not condition():
        ended = [daemon.args[0] for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = [*folder.glob("*.log"), *folder.glob("*.out")]
            texts = [log.read_text(errors="replace") for log in logs]
            lines = [line for text in texts for line in text.splitlines() if "fatal" in line]
            reasons = [*(f"{program} ended" for program in ended), *lines] or ["no idle nodes"]
            raise Unavailable(f"Slurm does not start here: {'; '.join(reasons)}")
        time.sleep(0.1)


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
