"""Atomic files and their errors; CPUs and memory of a job; file names from outside."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.catalogue import assert_seen

from fusionseg.utils import machine
from fusionseg.utils.errors import UserError, WriteError
from fusionseg.utils.files import file_name, sync, whole_file, writable_file, writable_folder, write_json, write_text


def test_file_is_complete_and_no_other_file_is_left(tmp_path: Path) -> None:
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
def test_exception_leaves_the_old_file_unchanged(tmp_path: Path, error: type[BaseException], begun: bool) -> None:
    target = tmp_path / "last.pt"
    target.write_text("old")
    with pytest.raises(error), whole_file(target) as temporary:
        if begun:
            temporary.write_text("ne")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_rename_leaves_no_partial_file(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(OSError), whole_file(target) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [target]


def test_missing_content_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "last.pt"
    target.write_text("old")
    code = (
        "import os, sys; from pathlib import Path; from fusionseg.utils.files import whole_file\n"
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


def test_available_cpus_follow_the_affinity() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    code = (
        "import os; from fusionseg.utils.machine import available_cpus\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.fixture
def control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`control_group("0::/job/task", {"job/cpu.max": "..."})`: the group of this process, and the files of groups."""

    def make(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own + "\n")
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(text + "\n")

    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path / "groups")
    return make


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000 100000", 2), ("50000 100000", 1), ("250000 100000", 2), ("max 100000", 8), ("", 8)]
)
@pytest.mark.parametrize("group", ["job", "job/task"])
def test_available_cpus_follow_the_quota_of_control_groups(
    monkeypatch: pytest.MonkeyPatch, control_group: Callable[..., None], group: str, quota: str, expected: int
) -> None:
    """A scheduler sets the quota of the job's group, which is above the group of the process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    control_group("0::/job/task", {"job/task/cpu.max": "max 100000", f"{group}/cpu.max": quota})
    assert machine.available_cpus() == expected


def test_control_groups_version_1(monkeypatch: pytest.MonkeyPatch, control_group: Callable[..., None]) -> None:
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
        (
            "3000000",
            "2900000",
            "anon 400000\ninactive_file 2500000",
            2_600_000,
        ),  # cached files, which the kernel can release
        ("1000", "2000", "", 0),
    ],
)
def test_available_memory_follows_the_limit_of_control_groups(
    control_group: Callable[..., None], limit: str, used: str, stat: str, expected: int
) -> None:
    files = {"job/memory.max": limit, "job/memory.current": used, "job/memory.stat": stat}
    control_group("0::/job/task", {"job/task/memory.max": "max", "job/task/memory.current": "10", **files})
    assert machine.available_memory_bytes() == expected


def test_available_memory_follows_the_soft_limit_of_a_group(control_group: Callable[..., None]) -> None:
    files = {"memory.max": "5000000", "memory.high": "3000000", "memory.current": "1000000", "memory.stat": ""}
    control_group("0::/", files)
    assert machine.available_memory_bytes() == 2_000_000


@pytest.mark.parametrize("variables", [{"SLURM_MEM_PER_NODE": 1}, {"SLURM_MEM_PER_CPU": 4, "SLURM_CPUS_ON_NODE": 4}])
def test_available_memory_of_a_slurm_job(monkeypatch: pytest.MonkeyPatch, variables: dict[str, int]) -> None:
    job = machine.process_memory_bytes("VmRSS") // 2**20 + 1024  # MB; what this process has taken is part of it
    for name, divisor in variables.items():
        monkeypatch.setenv(name, "4" if name == "SLURM_CPUS_ON_NODE" else str(job // divisor))
    assert 0 < machine.available_memory_bytes() < 2**31
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all memory of the node
    monkeypatch.delenv("SLURM_MEM_PER_CPU", raising=False)
    assert machine.available_memory_bytes() > 2**31


def test_available_memory_under_limits_of_the_process() -> None:
    """Under `ulimit -v`, an allocation of what is said to be free succeeds, and one of much more does not."""
    code = (
        "import numpy; from fusionseg.utils.machine import available_memory_bytes\n"
        "free = available_memory_bytes(); assert 0 < free < 2e9, free\n"
        "numpy.empty(int(0.9 * free), numpy.uint8)\n"
        "try: numpy.empty(free + 2**26, numpy.uint8)\n"
        "except MemoryError: print('refused')\n"
    )
    shell = f'ulimit -v 2000000; exec {sys.executable} -c "$0"'
    done = subprocess.run(["bash", "-c", shell, code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/memory", os.W_OK), reason="no cgroup of version 1 can be made")
def test_available_memory_in_a_real_control_group() -> None:
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
    group = Path("/sys/fs/cgroup/memory") / own.rpartition(":")[2].lstrip("/") / f"fusionseg-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("1500000000")
        code = "from fusionseg.utils.machine import available_memory_bytes; print(available_memory_bytes())"
        shell = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c '{code}'"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        assert 1_300_000_000 < int(done.stdout) < 1_500_000_000
    finally:
        group.rmdir()


def test_available_memory_without_a_limit(control_group: Callable[..., None]) -> None:
    control_group("0::/", {"memory.max": "max", "memory.current": "10"})
    assert machine.available_memory_bytes() > 10_000_000


# -- folders and files that cannot be written ----------------------------------------------------------------------


def unwritable(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Return folders that cannot be made or written, each with the cause in the message."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return {
        "parent": (tmp_path / "file" / "a" / "b", f"{tmp_path}/file is a file, not a folder"),
        "file": (tmp_path / "file", f"{tmp_path}/file is a file, not a folder"),
        "dangling": (tmp_path / "dangling", f"{tmp_path}/dangling is a link to {tmp_path}/nowhere/at all"),
        "below dangling": (tmp_path / "dangling" / "a", f"{tmp_path}/dangling is a link to"),
        "circle": (tmp_path / "circle" / "a", "circle"),
        "long": (tmp_path / "new" / ("x" * 256), "File name too long: choose a shorter name"),
        "long in bytes": (tmp_path / "new" / ("é" * 128), "File name too long"),
        "no disk": (Path("/proc/fusionseg"), "choose another place"),
    }


@pytest.mark.parametrize(
    "kind", ["file", "parent", "dangling", "below dangling", "circle", "long", "long in bytes", "no disk"]
)
def test_folder_that_cannot_be_written_is_refused(tmp_path: Path, kind: str) -> None:
    folder, cause = unwritable(tmp_path)[kind]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        writable_folder(folder, "--output")
    assert str(caught.value).startswith(f"--output: {folder}: cannot be written: ") and cause in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(WriteError) as failed:
        write_text(folder / "a.txt", "text")
    assert str(failed.value).startswith(f"{folder}/a.txt: cannot be written: ") and cause in str(failed.value)


def test_check_of_a_folder_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    writable_folder(tmp_path / "a" / "b c" / "d", "output")
    writable_folder(tmp_path / "a", "output")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


@pytest.mark.parametrize(("options", "cause"), [("2m,ro", "Read-only file system"), ("4k", "No space left on device")])
@pytest.mark.fault("output-not-writable")
def test_full_and_read_only_disks(tmp_path: Path, small_disk: Callable[[str], Path], options: str, cause: str) -> None:
    disk = small_disk(options)
    if cause.startswith("No space"):
        (disk / "all").write_bytes(bytes(4096))
    before = list(disk.iterdir())
    with pytest.raises(UserError, match=f"output: {disk}/runs/a: cannot be written: {cause}: ") as refused:
        writable_folder(disk / "runs" / "a", "output")
    assert_seen("output-not-writable", str(refused.value), disk / "runs" / "a")
    with pytest.raises(UserError, match=f"--json: {disk}: cannot be written: {cause}: "):
        writable_file(disk / "x.json", "--json")
    with pytest.raises(WriteError, match=f"x.json: cannot be written: {cause}: "):
        write_json(disk / "x.json", [0] * 4096)
    assert list(disk.iterdir()) == before


def test_file_name_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"--json: .*/folder: cannot be written: there is a folder of this name"):
        writable_file(tmp_path / "folder", "--json")
    with pytest.raises(UserError, match=r"--json: .* File name too long"):  # the temporary name has a prefix
        writable_file(tmp_path / ("x" * 250), "--json")
    writable_file(tmp_path / "new" / "x.json", "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_limit_of_the_file_size_is_reported(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "from fusionseg.utils.files import whole_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for write in (lambda t: t.write_bytes(bytes(5000)), lambda t: np.save(t.open('wb'), np.zeros(5000))):\n"
        "    try:\n"
        "        with whole_file(Path(sys.argv[1])) as temporary: write(temporary)\n"
        "    except OSError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"WriteError {tmp_path}/a: cannot be written: File too large: raise the limit (ulimit -f), or" \
        " choose another place"  # fmt: skip
    assert second.startswith(f"WriteError {tmp_path}/a: cannot be written: ")
    assert not list(tmp_path.iterdir())


def test_read_error_is_not_reported_as_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError, match="missing"), whole_file(tmp_path / "out" / "a") as temporary:
        temporary.write_bytes((tmp_path / "in" / "missing").read_bytes())


def test_write_error_can_be_pickled(tmp_path: Path) -> None:
    error = WriteError(28, "No space left on device", str(tmp_path / "a"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno) == (WriteError, str(error), 28)


# -- file names from outside ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["case_001", "Prostate 3T-01", "a.b", "Größe", "症例01", "x" * 200, "(1)", "a:b", "a~"]
)
def test_usual_name_is_unchanged(name: str) -> None:
    assert file_name(name) == name and file_name(name, ".nii.gz") == f"{name}.nii.gz"


NAMES = [
    "", ".", "..", "...", "/", "a/b", "/etc/passwd", "../x", "a\\b", "-rf", "--help", ".hidden", ".partial-x", " x",
    "x ", "x.", "a\nb", "a\0b", "a\tb", "\udcff", "\u202egz.iin", "con", "NUL.x",
    "x" * 300, "x" * 301, "é" * 150, "症" * 99,
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".nii.gz"])
def test_unsafe_names_become_safe_and_stay_different(tmp_path: Path, suffix: str) -> None:
    made = [file_name(name, suffix) for name in NAMES]
    assert len(set(made)) == len({*made} - set(NAMES)) == len(NAMES)
    for name in made:
        assert name[0] not in ".- " and name.isprintable() and Path(name).name == name and name.endswith(suffix)
        write_text(tmp_path / "in" / name, "text")  # with a temporary name's prefix
        assert file_name(name.removesuffix(suffix), suffix) == name
    assert len(list((tmp_path / "in").iterdir())) == len(NAMES) and os.listdir(tmp_path) == ["in"]
