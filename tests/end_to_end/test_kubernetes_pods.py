"""The containers of a manifest as processes of this machine: the pods of one job, with one rank each, over gloo.

The test stands in for Kubernetes and the operator. It sets the variables that the operator sets in each pod (setPodEnv
in pkg/controller.v1/pytorch/envvar.go of github.com/kubeflow/training-operator), replaces $(NAME) in the arguments,
starts containers that have failed again, and makes an evicted pod anew. There is no cluster and no kubectl.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from end_to_end.runs import Program, Started, assert_same_run, ranks_of, records, wait_for_step
from fusionseg.cli import main
from fusionseg.config import RunConfig, dump_config

TORCHRUN = Path(sys.executable).with_name("torchrun")
STEPS = 60


@pytest.fixture
def job(
    balls: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """The job of a run on two pods without GPUs. Its configuration is beside it, as the ConfigMap has it."""
    train = {"steps": STEPS, "global_batch": 2, "micro_batch": 1}
    config = tiny_config(
        balls, tmp_path / "runs", train=train, validate={"every": STEPS}, checkpoint={"every": STEPS}, name="pods"
    )
    (tmp_path / "own.yaml").write_text(dump_config(config))
    (tmp_path / "profile.yaml").write_text(
        "{cluster: kubernetes, nodes: 2, gpus_per_node: 0, cpus_per_task: 1, environment: {OMP_NUM_THREADS: '1'}}"
    )
    claims = ("--claim", f"data={balls.parent}:ro", "--claim", f"runs={tmp_path}")
    words = ("manifest", str(tmp_path / "own.yaml"), "--cluster", str(tmp_path / "profile.yaml"))
    assert main([*words, "--image", "a/b:1", *claims]) == 0
    config_map, found = yaml.safe_load_all(capsys.readouterr().out)
    (tmp_path / "config.yaml").write_text(config_map["data"]["run.yaml"])
    return dict(found)


class Pods:
    """The pods of a job: the master, and the workers after it."""

    def __init__(self, program: Program, job: dict[str, Any], folder: Path) -> None:
        self.program, self.spec, self.folder = program, job["spec"], folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        replicas = self.spec["pytorchReplicaSpecs"]
        self.size = sum(one["replicas"] for one in replicas.values())
        self.running = [self.start(rank) for rank in range(self.size)]
        self.restarts = 0

    def start(self, rank: int) -> Started:
        """Start the container of a pod."""
        kind = "Master" if rank == 0 else "Worker"
        (container,) = self.spec["pytorchReplicaSpecs"][kind]["template"]["spec"]["containers"]
        local = self.spec["nprocPerNode"]
        variables = {
            **{one["name"]: one.get("value", "127.0.0.1") for one in container["env"]},  # without a value: POD_IP
            "PYTHONUNBUFFERED": "1",
            "MASTER_ADDR": "localhost",  # in a cluster the name of the service of the master's pod
            "MASTER_PORT": self.port,
            "WORLD_SIZE": str(self.size * int(local)),
            "RANK": str(rank),
            "PET_NODE_RANK": str(rank),
            "PET_NPROC_PER_NODE": local,
            "PET_NNODES": str(self.size),
        }
        arguments = [re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], one) for one in container["args"]]
        assert container["command"] == ["torchrun"] and arguments[-1] == "/etc/fusionseg/run.yaml"
        return self.program.fresh(TORCHRUN, *arguments[:-1], self.folder / "config.yaml", env=variables)

    def run(self, timeout_s: float = 180.0) -> None:
        """Start containers that fail again, until all have ended with status 0.

        The operator ends a job whose containers were started again `backoffLimit` times.
        """
        limit = time.monotonic() + timeout_s
        while not all(pod.status == 0 for pod in self.running):
            assert time.monotonic() < limit, [pod.err.read_text() for pod in self.running]
            for rank, pod in enumerate(self.running):
                if pod.status not in (None, 0):
                    self.restarts += 1
                    assert self.restarts < self.spec["runPolicy"]["backoffLimit"], pod.wait()
                    self.running[rank] = self.start(rank)
            time.sleep(0.1)


@pytest.fixture
def undisturbed(program: Program, job: dict[str, Any], tmp_path: Path) -> Path:
    """The same run, by two ranks of one node."""
    config = tmp_path / "config.yaml"
    ranks = program.ranks(2, "--config", config, "name=undisturbed")
    for rank in ranks:
        rank.wait().expect(0)
    return tmp_path / "runs/undisturbed"


@pytest.mark.parametrize("event", ["a worker is evicted", pytest.param("the master is killed", marks=pytest.mark.long)])
def test_two_pods_train_together_and_go_on_after(
    program: Program, job: dict[str, Any], tmp_path: Path, undisturbed: Path, event: str
) -> None:
    """The result is bit for bit that of two ranks on one node which nobody has disturbed."""
    pods, run = Pods(program, job, tmp_path), tmp_path / "runs/pods"
    wait_for_step(run, 5, pods.running)
    master, worker = pods.running
    if event == "a worker is evicted":
        # The pod gets SIGTERM, and the operator makes it anew: this is no restart of a container.
        worker.send(signal.SIGTERM)
        assert worker.wait().status != 0
        stopped = records(run, "train")[-1]["step"]
        assert 5 <= stopped < STEPS
        assert (run / f"checkpoints/step_{stopped:08d}.pt").exists()
        pods.running[1] = pods.start(1)
    else:
        for process in (*ranks_of(master), None):
            os.kill(master.pid if process is None else process.pid, signal.SIGKILL)
    pods.run()
    assert_same_run(run, undisturbed)
    assert records(run, "end")[-1]["status"] == "completed"
