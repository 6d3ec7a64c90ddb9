"""Files appear whole or not at all; a job takes what it was given of the machine, not what there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionseg import machine
from fusionseg.files import sync, whole_file, write_json, write_text


def test_content_is_complete_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "volume.nii.gz"
    content = os.urandom(1 << 16)
    with whole_file(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith("volume.nii.gz")
        temporary.write_bytes(content)
        assert not target.exists()
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("begun", [True, False])
def test_a_raise_leaves_the_old_file_untouched(tmp_path: Path, error: type[BaseException], begun: bool) -> None:
    target = tmp_path / "last.pt"
    target.write_text("old")
    with pytest.raises(error), whole_file(target) as temporary:
        if begun:
            temporary.write_text("ne")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_rename_leaves_no_partial_file(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(OSError), whole_file(target) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [target]


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "last.pt"
    target.write_text("old")
    code = (
        "import os, sys; from pathlib import Path; from fusionseg.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, target], check=False).returncode == 9
    assert target.read_text() == "old"
    with whole_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Größe\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\n".encode()
    write_json(tmp_path / "a.json", {"dice": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": 0.5}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"dice": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": 0.5}
    sync(tmp_path)


def test_affinity_is_respected() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    code = (
        "import os; from fusionseg.machine import available_cpus\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.fixture
def control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`control_group("0::/job/task", {"job/cpu.max": "..."})`: where this process lies, and the groups' files."""

    def lay(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own + "\n")
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(text + "\n")

    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path / "groups")
    return lay


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000 100000", 2), ("50000 100000", 1), ("250000 100000", 2), ("max 100000", 8), ("", 8)]
)
@pytest.mark.parametrize("group", ["job", "job/task"])
def test_the_control_groups_quota_is_respected(
    monkeypatch: pytest.MonkeyPatch, control_group: Callable[..., None], group: str, quota: str, expected: int
) -> None:
    """A scheduler sets it on the job's group, above the process's own."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    control_group("0::/job/task", {"job/task/cpu.max": "max 100000", f"{group}/cpu.max": quota})
    assert machine.available_cpus() == expected


def test_version_1_of_the_control_groups(monkeypatch: pytest.MonkeyPatch, control_group: Callable[..., None]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    control_group(
        "4:memory:/job\n3:cpu,cpuacct:/job\n0::/",
        {
            "cpu/job/cpu.cfs_quota_us": "300000",
            "cpu/job/cpu.cfs_period_us": "100000",
            "memory/job/memory.limit_in_bytes": "5000000",
            "memory/job/memory.usage_in_bytes": "4000000",
            "memory/job/memory.stat": "cache 3\ntotal_inactive_file 500000",
        },
    )
    assert machine.available_cpus() == 3
    assert machine.available_memory_bytes() == 1_500_000


@pytest.mark.parametrize(
    ("limit", "used", "stat", "expected"),
    [
        ("3000000", "1000000", "", 2_000_000),
        ("3000000", "2900000", "anon 400000\ninactive_file 2500000", 2_600_000),  # files read, not memory taken
        ("1000", "2000", "", 0),
    ],
)
def test_the_control_groups_memory_is_respected(
    control_group: Callable[..., None], limit: str, used: str, stat: str, expected: int
) -> None:
    files = {"job/memory.max": limit, "job/memory.current": used, "job/memory.stat": stat}
    control_group("0::/job/task", {"job/task/memory.max": "max", "job/task/memory.current": "10", **files})
    assert machine.available_memory_bytes() == expected


def test_without_a_limit_the_machine_decides(control_group: Callable[..., None]) -> None:
    control_group("0::/", {"memory.max": "max", "memory.current": "10"})
    assert machine.available_memory_bytes() > 10_000_000
