"""Which processes a launcher has started together, from the variables that it sets."""

import os

import pytest

from steph_jax.hosts.discovery import Place, place_of_this_process, visible_gpus

SRUN = {
    "SLURM_JOB_ID": "8195",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],big1",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1,1",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "CUDA_VISIBLE_DEVICES": ""}
HERE = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        (JAX, Place("a:1", 2, 1)),
        (JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        # Two of the four GPUs that both tasks of this node see.
        (SRUN, Place("gpu07:61443", 6, 3, [2, 3])),
        # Each task sees its own.
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0"}, Place("gpu07:61443", 6, 3)),
        # One task on its node has all of them.
        (SRUN | {"SLURM_NODEID": "2", "SLURM_PROCID": "4"}, Place("gpu07:61443", 6, 4)),
        (SRUN | {"SLURM_STEP_NODELIST": "n1,n2"}, Place("n1:61443", 6, 3, [2, 3])),
        (SRUN | {"JAX_LOCAL_DEVICE_IDS": "0"}, Place("gpu07:61443", 6, 3)),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "b:2"}, Place("b:2", 6, 3, [2, 3])),
        # The script of a job, an element of an array in srun, and older Slurm.
        (BATCH, None),
        (BATCH | {"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1"}, None),
        (BATCH | {"SLURM_STEP_NODELIST": "n1"}, Place("n1:61447", 2, 0)),
        (MPI | HERE, Place(f"127.0.0.1:{61440 + os.getppid() % 4096}", 2, 1)),
        (MPI | {"JAX_COORDINATOR_ADDRESS": "a:1"}, Place("a:1", 2, 1)),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, None),
    ],
)
def test_place(variables, place):
    assert place_of_this_process(variables) == place


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (MPI, "on several hosts: set JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "expected JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID is set: expected JAX_COORDINATOR_ADDRESS"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "a"}, "expected HOST:PORT of process 0, found 'a'"),
        (JAX | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is from 0 to .* found 2 of 2"),
        (JAX | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID: expected a whole number, found 'x'"),
    ],
)
def test_a_place_that_is_not_clear(variables, message):
    with pytest.raises(ValueError, match=message):
        place_of_this_process(variables)


def test_visible_gpus():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 3"}) == [2, 3]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
