"""Choice of the network interface and of the CPUs of a rank."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fusionseg.distributed.cpu_binding import bind_to_near_cpus, near_cpus, parse_cpu_list
from fusionseg.distributed.launch import gloo_interface

INTERFACES = ["lo", "eth0", "ib0", "ib10"]


@pytest.mark.parametrize(
    ("nccl", "chosen"),
    [
        ("ib0", "ib0"),
        ("ib", "ib0"),
        ("=ib10", "ib10"),
        ("=ib", None),
        ("^lo,docker", None),
        ("bond,eth", "eth0"),
        ("", None),
    ],
)
def test_gloo_takes_the_interface_of_nccl(nccl: str, chosen: str | None) -> None:
    assert gloo_interface({"NCCL_SOCKET_IFNAME": nccl}, INTERFACES) == chosen


def test_interface_of_gloo_that_is_set_stays() -> None:
    assert gloo_interface({"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "eth0"}, INTERFACES) is None
    assert gloo_interface({}, INTERFACES) is None


def test_cpus_near_a_device(tmp_path: Path) -> None:
    folder = tmp_path / "0000:3b:00.0"
    folder.mkdir()
    (folder / "local_cpulist").write_text("0-2,8,10-11\n")
    assert near_cpus("0000:3b:00.0", tmp_path) == {0, 1, 2, 8, 10, 11}
    assert near_cpus("0000:af:00.0", tmp_path) == set()
    assert parse_cpu_list("\n") == set()  # a device that is near no CPU


def test_rank_without_a_gpu_keeps_its_cpus() -> None:
    before = os.sched_getaffinity(0)
    bind_to_near_cpus(torch.device("cpu"))
    assert os.sched_getaffinity(0) == before
