"""Launch of a process, read from made-up environments."""

from __future__ import annotations

import socket

import pytest
from faults.catalogue import assert_seen

from fusionseg.distributed.launch import (
    MPI_VARIABLES,
    SLURM_VARIABLES,
    TORCHRUN_VARIABLES,
    Launch,
    check_port,
    first_node,
    read_launch,
    tasks_per_node,
)
from fusionseg.utils.errors import UserError

TORCHRUN = dict(zip(TORCHRUN_VARIABLES, ("5", "8", "1", "4", "node1", "29500"), strict=True))


BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
# as SLURM 22.05 sets them in the third of four tasks on two nodes
SRUN = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_JOB_ID": "2",
    "SLURM_STEP_ID": "0",
}


def test_torchrun() -> None:
    assert read_launch({**TORCHRUN, "HOME": "/root"}) == Launch(5, 8, 1, 4)


ONE_TASK = {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4", "PMI_SIZE": "1"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"MASTER_ADDR": "node1", "MASTER_PORT": "1"},
        {**BATCH_SCRIPT, "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "32"},
        {**BATCH_SCRIPT, "SLURM_NTASKS": "many"},
        ONE_TASK,
    ],
)
def test_single_process(environ: dict[str, str]) -> None:
    assert read_launch(environ) == Launch(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("environ", "tasks"),
    [
        (BATCH_SCRIPT, 4),
        ({"SLURM_JOB_ID": "7", "SLURM_NPROCS": "2"}, 2),  # a shell of salloc
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "2"}, 6),
        ({**BATCH_SCRIPT, "SLURM_STEP_ID": "4294967291"}, 4),
    ],
)
@pytest.mark.fault("one-process-in-a-job-of-several-tasks")
def test_single_process_in_a_job_of_several_tasks_is_warned(environ: dict[str, str], tasks: int) -> None:
    launch = read_launch(environ)
    assert (launch.rank, launch.world_size) == (0, 1)
    assert f"{tasks} tasks" in launch.warning
    assert_seen("one-process-in-a-job-of-several-tasks", launch.warning)


def test_task_of_srun_without_the_number_of_tasks_is_refused() -> None:
    """Task 0 too: it would otherwise look like a single process."""
    environ = {**BATCH_SCRIPT, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node1"}
    with pytest.raises(UserError, match=r"SLURM_STEP_NUM_TASKS, .* not set; start with srun"):
        read_launch(environ)


@pytest.mark.parametrize("names", MPI_VARIABLES, ids=["Open MPI", "MPICH"])
def test_mpirun(names: tuple[str, str, str, str]) -> None:
    one_node = dict(zip(names, ("1", "2", "1", "2"), strict=True))
    assert read_launch(one_node) == Launch(1, 2, 1, 2, ("127.0.0.1", 29500))
    assert read_launch({**one_node, "MASTER_PORT": "7"}).master == ("127.0.0.1", 7)
    # mpirun starts a daemon on each node by srun, and its ranks have the variables of the daemon.
    two_nodes = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", **dict(zip(names, ("3", "4", "1", "2"), strict=True))}
    assert read_launch({**two_nodes, "MASTER_ADDR": "node1"}) == Launch(3, 4, 1, 2, ("node1", 29500))
    with pytest.raises(UserError, match=r"4 ranks on several nodes, and MASTER_ADDR is not set .*torchrun or srun"):
        read_launch(two_nodes)
    assert read_launch(dict(zip(names, ("0", "1", "0", "1"), strict=True))) == Launch()
    with pytest.raises(UserError, match="expected integers"):
        read_launch({**one_node, names[0]: "x"})


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_an_mpirun_without_local_ranks_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}=4: mpirun .*start with torchrun .*srun python -m fusionseg.train"):
        read_launch({name: "4"})
    assert read_launch({**TORCHRUN, name: "4"}).world_size == 8
    assert read_launch({**SRUN, name: "4"}).world_size == 4  # srun sets PMI_SIZE


@pytest.mark.parametrize("missing", TORCHRUN_VARIABLES)
@pytest.mark.parametrize("how", ["unset", "empty"])
def test_incomplete_torchrun_environment_is_refused(missing: str, how: str) -> None:
    environ = {name: value for name, value in TORCHRUN.items() if name != missing}
    if how == "empty":
        environ[missing] = ""
    with pytest.raises(UserError, match=rf"not {missing} .*torchrun --nproc_per_node"):
        read_launch(environ)


def test_text_for_a_rank_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected integers.*LOCAL_RANK=one"):
        read_launch({**TORCHRUN, "LOCAL_RANK": "one"})


def test_srun() -> None:
    assert read_launch(SRUN) == Launch(2, 4, 0, 2, ("node1", 15014), token="2.0")
    assert read_launch({**SRUN, **TORCHRUN}) == Launch(5, 8, 1, 4)  # torchrun, started by srun
    own = {**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert read_launch(own).master == ("10.0.0.1", 29500)


def test_jobs_and_steps_have_different_ports() -> None:
    def port(job: int, step: str) -> int:
        master = read_launch({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": step}).master
        assert master is not None
        return master[1]

    assert len({port(job, step) for job in range(1000, 1200) for step in ("0", "1", "2")}) == 600
    assert all(15000 <= port(job, "0") < 32000 for job in (1, 16999, 17000, 98765432))


@pytest.mark.parametrize("missing", [name for name in SLURM_VARIABLES if name != "SLURM_STEP_NUM_TASKS"])
def test_incomplete_srun_environment_is_refused(missing: str) -> None:
    with pytest.raises(UserError, match=rf"srun.* {missing} are not set"):
        read_launch({name: value for name, value in SRUN.items() if name != missing})


def test_missing_number_of_tasks_is_refused() -> None:
    """Without it, each task would train alone in the same folder."""
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS, "):
        read_launch({"SLURM_PROCID": "3"})


@pytest.mark.parametrize(
    ("text", "counts"), [("4", [4]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("3,2(x2)", [3, 2, 2])]
)
def test_tasks_per_node(text: str, counts: list[int]) -> None:
    assert tasks_per_node(text) == counts


def test_tasks_per_node_of_unknown_form_is_refused() -> None:
    with pytest.raises(UserError, match=r"SLURM_STEP_TASKS_PER_NODE=2\(3\)"):
        tasks_per_node("2(3)")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[1-2]", "node1"),
        ("gpu-[003-010,12]", "gpu-003"),
        ("a[1,3],b2", "a1"),
        ("login,b2", "login"),
        ("r1n[07]-ib", "r1n07-ib"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.fault("port-taken")
def test_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of node1") as refused:
            check_port(("node1", port))
    assert_seen("port-taken", str(refused.value))
    check_port(("node1", port))
