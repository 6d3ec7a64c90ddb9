"""Launch environment of this process: torchrun, srun, mpirun or a single process; address of rank 0."""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusionseg.utils.errors import UserError

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = (
    "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_STEP_NODELIST", "SLURM_JOB_ID",
)  # fmt: skip

MPI_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Rank, number of ranks, and both on this node, as the mpirun of Open MPI and that of MPICH and Intel MPI set them."""
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE")
MPI_JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")
"""Names of a start by mpirun: the variables that have it, where one is set."""
MPI_PORT = 29500
"""Port of rank 0 under an mpirun that does not name its start, without MASTER_PORT; that of torch."""

FIRST_RESERVED_STEP_ID = 4_000_000_000
"""SLURM gives step ids from here on to its own steps: the batch script, an interactive shell."""

# Ports for the ranks of a SLURM step. They lie below Linux's ephemeral ports (from 32768), which clients use.
FIRST_PORT, NUM_PORTS = 15000, 17000


@dataclass(frozen=True)
class Launch:
    """Rank and world size of this process, and the address of rank 0."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master: tuple[str, int] | None = None
    """Host and port on which rank 0 opens the store; None under torchrun, which has opened a store itself."""
    warning: str = ""
    """A warning for the user; empty if there is none."""
    token: str = ""
    """A name that only the ranks of this start have, where the launcher gives one. Ranks of another start that find the
    same port keep apart by it."""


def read_launch(environ: Mapping[str, str]) -> Launch:
    """Read the launch from torchrun's variables, mpirun's or srun's; without them it is a single process.

    Args:
        environ: the environment, such as `os.environ`.

    Raises:
        UserError: a part of the variables is missing or has no valid value.
    """
    # MASTER_ADDR and MASTER_PORT do not count: some sites set them for every job.
    if any(environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return torchrun_launch(environ)
    # Before srun's: mpirun starts its own daemons by srun, and the ranks inherit their variables. srun itself sets
    # only a part of MPICH's variables.
    for names in MPI_VARIABLES:
        if all(environ.get(name) for name in names) and environ[names[1]] != "1":
            return mpi_launch(environ, names)
    # The number of tasks of the step, not of the job: a batch script and a shell in an allocation are single processes,
    # however many tasks the job has.
    if environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" or environ.get("SLURM_PROCID", "0") != "0":
        return slurm_launch(environ)
    step = environ.get("SLURM_STEP_ID", "")
    started_by_srun = step.isdigit() and int(step) < FIRST_RESERVED_STEP_ID
    if started_by_srun and "SLURM_STEP_NUM_TASKS" not in environ and _num_job_tasks(environ) > 1:
        return slurm_launch(environ)  # raises UserError: SLURM_STEP_NUM_TASKS is missing
    return Launch(warning=_single_process_warning(environ))


def _single_process_warning(environ: Mapping[str, str]) -> str:
    """Return a warning if this single process runs in a SLURM job of several tasks.

    Raises:
        UserError: an mpirun whose variables are not known started several processes; each of them would train alone in
            the same folder.
    """
    for name in MPI_SIZES:
        if environ.get(name, "1").isdigit() and int(environ.get(name, "1")) > 1:
            raise UserError(
                f"environment: {name}={environ[name]}: mpirun started these processes but did not set the ranks on this"
                " node, and each of them would train alone in the same folder; start with torchrun --nproc_per_node=N"
                " -m fusionseg.train, or with srun python -m fusionseg.train"
            )
    if environ.get("SLURM_STEP_NUM_TASKS"):  # srun started a step of one task: the user asked for one
        return ""
    tasks = _num_job_tasks(environ)
    if tasks <= 1:
        return ""
    return (
        f"this is a single process in a SLURM job of {tasks} tasks: the other tasks are not used. To train on all of"
        " them, start with srun: srun python -m fusionseg.train ..."
    )


def _num_job_tasks(environ: Mapping[str, str]) -> int:
    """Return the number of tasks that the job asked for.

    SLURM_TASKS_PER_NODE is not read: for a job that asked for no number of tasks it counts CPUs.
    """

    def count(name: str) -> int:
        text = environ.get(name, "")
        return int(text) if text.isdigit() else 1

    nodes = max(count("SLURM_JOB_NUM_NODES"), count("SLURM_NNODES"))
    return max(count("SLURM_NTASKS"), count("SLURM_NPROCS"), nodes * count("SLURM_NTASKS_PER_NODE"))


def torchrun_launch(environ: Mapping[str, str]) -> Launch:
    """Read the launch from the variables that torchrun sets.

    Raises:
        UserError: a variable is missing or is no integer.
    """
    missing = [name for name in TORCHRUN_VARIABLES if not environ.get(name)]
    if missing:
        given = [name for name in TORCHRUN_VARIABLES if name not in missing]
        raise UserError(
            f"environment: {', '.join(given)} are set, but not {', '.join(missing)} (expected all of them, as torchrun"
            " sets them); start with torchrun --nproc_per_node=N -m fusionseg.train, or unset them"
        )
    rank, world_size, local_rank, local_world_size = _integers(environ, TORCHRUN_VARIABLES[:4])
    return Launch(rank, world_size, local_rank, local_world_size)


def slurm_launch(environ: Mapping[str, str]) -> Launch:
    """Read the launch from the variables that srun sets in every task of a step.

    Rank 0 is on the first node of the step. Its port is computed from the ids of the job and of the step, so that jobs
    on the same node use different ports. MASTER_ADDR and MASTER_PORT replace both if they are set.

    Raises:
        UserError: a variable is missing or has no valid value.
    """
    missing = [name for name in SLURM_VARIABLES if not environ.get(name)]
    if missing:
        raise UserError(
            f"environment: this process is a task of srun, but {', '.join(missing)} are not set; start with srun and"
            " pass its environment on (a container may remove it), or unset SLURM_STEP_NUM_TASKS and SLURM_PROCID to"
            " run a single process"
        )
    rank, world_size, local_rank, node, job = _integers(
        environ, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
    )
    step = environ.get("SLURM_STEP_ID", "0")
    port = default_master_port(job, int(step) if step.isdigit() else 0)
    if environ.get("MASTER_PORT"):
        (port,) = _integers(environ, ("MASTER_PORT",))
    host = environ.get("MASTER_ADDR") or first_node(environ["SLURM_STEP_NODELIST"])
    local_world_size = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node]
    return Launch(rank, world_size, local_rank, local_world_size, (host, port), token=f"{job}.{step}")


def mpi_launch(environ: Mapping[str, str], names: tuple[str, str, str, str]) -> Launch:
    """Read the launch from the variables that mpirun sets in every rank.

    mpirun does not tell the address of rank 0: MASTER_ADDR has it, unless all ranks are on one node.

    Args:
        environ: the environment.
        names: the variables; an entry of `MPI_VARIABLES`.

    Raises:
        UserError: a value is no integer, or the ranks are on several nodes and MASTER_ADDR is not set.
    """
    rank, world_size, local_rank, local_world_size = _integers(environ, names)
    host = environ.get("MASTER_ADDR", "")
    if not host and local_world_size < world_size:
        raise UserError(
            f"environment: mpirun started {world_size} ranks on several nodes, and MASTER_ADDR is not set (expected the"
            " host of rank 0); start with mpirun -x MASTER_ADDR=HOST (Open MPI) or mpirun -genv MASTER_ADDR HOST"
            " (MPICH, Intel MPI), or with torchrun or srun, which need no variable"
        )
    token = next((environ[name] for name in MPI_JOBS if environ.get(name)), "")
    port = FIRST_PORT + zlib.crc32(token.encode()) % NUM_PORTS if token else MPI_PORT
    if environ.get("MASTER_PORT"):
        (port,) = _integers(environ, ("MASTER_PORT",))
    return Launch(rank, world_size, local_rank, local_world_size, (host or "127.0.0.1", port), token=token)


def default_master_port(job: int, step: int = 0) -> int:
    """Return the port on which rank 0 opens its store, from 15000 to 31999.

    Args:
        job: id of the SLURM job.
        step: id of the step in the job.
    """
    return FIRST_PORT + (7 * job + step) % NUM_PORTS


def tasks_per_node(text: str) -> list[int]:
    """Parse SLURM_STEP_TASKS_PER_NODE: "2(x3),1" is [2, 2, 2, 1].

    Raises:
        UserError: the text has another form.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(
                f"environment: SLURM_STEP_TASKS_PER_NODE={text}: cannot be read (expected a list such as 2(x3),1); let"
                " srun set it"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_node(nodes: str) -> str:
    """Return the first host of a SLURM node list: "node03" of "node[03-05,9],other".

    Raises:
        UserError: the text has another form.
    """
    match = re.match(r"([^\[\],]+)(?:\[(\w+)[^\]]*\]([^\[\],]*))?", nodes)
    if match is None:
        raise UserError(
            f"environment: SLURM_STEP_NODELIST={nodes}: cannot be read (expected a list such as node[03-05,9]); let"
            " srun set it"
        )
    return "".join(part or "" for part in match.groups())


def check_port(master: tuple[str, int]) -> None:
    """Check on rank 0 that the port of the store is free.

    Args:
        master: host (for the message) and port on this machine.

    Raises:
        UserError: another process listens on the port.
    """
    host, port = master
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"environment: port {port} of {host}, on which rank 0 listens for the other ranks, cannot be opened"
                f" ({error.strerror}); set MASTER_PORT to a free port in the job's environment"
            ) from None


def _integers(environ: Mapping[str, str], names: tuple[str, ...]) -> list[int]:
    try:
        return [int(environ[name]) for name in names]
    except ValueError:
        got = ", ".join(f"{name}={environ[name]}" for name in names)
        raise UserError(f"environment: expected integers, got {got}; let torchrun or srun set them") from None


def gloo_interface(environ: Mapping[str, str], interfaces: Sequence[str]) -> str | None:
    """Choose the network interface of gloo: the one that the user chose for NCCL.

    NCCL_SOCKET_IFNAME holds prefixes (`ib,eth`), full names (`=ib0`), or interfaces to leave out (`^docker`).
    GLOO_SOCKET_IFNAME holds full names.

    Args:
        environ: the environment, such as `os.environ`.
        interfaces: names of the interfaces of this host.

    Returns:
        The first interface that fits; None if the user chose none for NCCL, or chose gloo's too.
    """
    chosen = environ.get("NCCL_SOCKET_IFNAME", "")
    if not chosen or chosen.startswith("^") or environ.get("GLOO_SOCKET_IFNAME"):
        return None
    names = chosen.removeprefix("=").split(",")
    exact = chosen.startswith("=")
    fitting = (
        interface
        for name in names
        for interface in interfaces
        if interface == name or (not exact and interface.startswith(name))
    )
    return next(fitting, None)
