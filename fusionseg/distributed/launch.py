"""How this process was launched: by torchrun, by srun, or alone; and where the ranks meet."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from fusionseg.utils.errors import UserError

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = (
    "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_STEP_NODELIST", "SLURM_JOB_ID",
)  # fmt: skip

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")

BATCH_STEPS = 4_000_000_000
"""Numbers of steps from here on are SLURM's own: the batch script, an interactive shell."""

# Ports for the ranks of a SLURM step to meet at: below the range from which Linux gives clients theirs.
FIRST_PORT, NUM_PORTS = 15000, 17000


@dataclass(frozen=True)
class Launch:
    """The place of this process among the processes of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    meeting: tuple[str, int] | None = None
    """Host and port at which rank 0 opens the store; None is for torchrun, which has opened one."""
    remark: str = ""
    """A remark for the user."""


def read_launch(environ: Mapping[str, str]) -> Launch:
    """What torchrun says, or else srun; without both, one process alone.

    Raises:
        UserError: some of the variables are set and others not, or one has no valid value.
    """
    if any(environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return torchrun_launch(environ)  # MASTER_ADDR alone is left over from something else
    # The step's number of tasks, not the job's: a batch script and a shell in an allocation are one process each,
    # whatever they may start with srun.
    if environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" or environ.get("SLURM_PROCID", "0") != "0":
        return slurm_launch(environ)
    step = environ.get("SLURM_STEP_ID", "")
    if step.isdigit() and int(step) < BATCH_STEPS and "SLURM_STEP_NUM_TASKS" not in environ and _job_tasks(environ) > 1:
        return slurm_launch(environ)  # a task of srun that was not told all of it: refused
    return Launch(remark=_why_not_alone(environ))


def _why_not_alone(environ: Mapping[str, str]) -> str:
    """Describe the launch of a single process in a job of several tasks.

    Raises:
        UserError: it is one of several that mpirun started.
    """
    for name in MPI_SIZES:
        if environ.get(name, "1").isdigit() and int(environ.get(name, "1")) > 1:
            raise UserError(
                f"environment: {name}={environ[name]}: mpirun has started these processes, and each would train alone,"
                " all in one folder: start with torchrun --nproc_per_node=N -m fusionseg.train, or with srun"
            )
    if environ.get("SLURM_STEP_NUM_TASKS"):  # srun was asked for one
        return ""
    tasks = _job_tasks(environ)
    if tasks <= 1:
        return ""
    return (
        f"this is one process, in a SLURM job of {tasks} tasks: the others are not used. To train on all of them start"
        " with srun: srun python -m fusionseg.train ..."
    )


def _job_tasks(environ: Mapping[str, str]) -> int:
    """The tasks that were asked for. (SLURM_TASKS_PER_NODE counts CPUs where none were.)"""

    def number(name: str) -> int:
        text = environ.get(name, "")
        return int(text) if text.isdigit() else 1

    nodes = max(number("SLURM_JOB_NUM_NODES"), number("SLURM_NNODES"))
    return max(number("SLURM_NTASKS"), number("SLURM_NPROCS"), nodes * number("SLURM_NTASKS_PER_NODE"))


def torchrun_launch(environ: Mapping[str, str]) -> Launch:
    """The launch by torchrun's variables.

    Raises:
        UserError: one is missing, or is no number.
    """
    missing = [name for name in TORCHRUN_VARIABLES if not environ.get(name)]
    if missing:
        given = [name for name in TORCHRUN_VARIABLES if name not in missing]
        raise UserError(
            f"environment: {', '.join(given)} are set as by torchrun, and {', '.join(missing)} not: start with"
            " torchrun --nproc_per_node=N -m fusionseg.train, or unset them"
        )
    rank, world, local, local_world = _whole_numbers(environ, TORCHRUN_VARIABLES[:4])
    return Launch(rank, world, local, local_world)


def slurm_launch(environ: Mapping[str, str]) -> Launch:
    """The launch by the variables that srun sets in every task of a step.

    The ranks meet on the step's first node, at a port that follows from the job's and the step's numbers: jobs that
    share a node have different ones. MASTER_ADDR and MASTER_PORT, if set, win.

    Raises:
        UserError: one is missing, or has no valid value.
    """
    missing = [name for name in SLURM_VARIABLES if not environ.get(name)]
    if missing:
        raise UserError(
            f"environment: some variables say that this is one of the tasks of srun, and {', '.join(missing)} are not"
            " set: start with srun and let its environment through (a container may hold it back), or unset"
            " SLURM_STEP_NUM_TASKS and SLURM_PROCID to run alone"
        )
    rank, world, local, node, job = _whole_numbers(
        environ, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
    )
    step = environ.get("SLURM_STEP_ID", "0")
    port = meeting_port(job, int(step) if step.isdigit() else 0)
    if environ.get("MASTER_PORT"):
        (port,) = _whole_numbers(environ, ("MASTER_PORT",))
    host = environ.get("MASTER_ADDR") or first_node(environ["SLURM_STEP_NODELIST"])
    return Launch(rank, world, local, tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node], (host, port))


def meeting_port(job: int, step: int = 0) -> int:
    """The port that follows from a SLURM job and its step."""
    return FIRST_PORT + (7 * job + step) % NUM_PORTS


def tasks_per_node(text: str) -> list[int]:
    """SLURM's "2(x3),1" as 2, 2, 2, 1.

    Raises:
        UserError: it is written in another way.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"environment: SLURM_STEP_TASKS_PER_NODE={text} is not written as srun writes it: 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_node(nodes: str) -> str:
    """The first host of a list such as "node[03-05,9],other".

    Raises:
        UserError: it is written in another way.
    """
    match = re.match(r"([^\[\],]+)(?:\[(\w+)[^\]]*\]([^\[\],]*))?", nodes)
    if match is None:
        raise UserError(f"environment: SLURM_STEP_NODELIST={nodes} names no host")
    return "".join(part or "" for part in match.groups())


def check_port(meeting: tuple[str, int]) -> None:
    """Make sure that rank 0 can open its store here.

    Raises:
        UserError: something else listens at the port.
    """
    host, port = meeting
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} of {host}, where the ranks are to meet, cannot be opened ({error.strerror}): set"
                " MASTER_PORT to a free one in the job's environment"
            ) from None


def _whole_numbers(environ: Mapping[str, str], names: tuple[str, ...]) -> list[int]:
    try:
        return [int(environ[name]) for name in names]
    except ValueError:
        shown = ", ".join(f"{name}={environ[name]}" for name in names)
        raise UserError(f"environment: not all of these are whole numbers: {shown}") from None
