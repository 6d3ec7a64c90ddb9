"""Lock of a folder, with and without file locks of the file system, and its loss while it is held."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.catalogue import assert_seen

from fusionseg.utils.locks import folder_lock, owner
from fusionseg.utils.locks.file_systems import is_shared
from fusionseg.utils.locks.folder_lock import FolderLock, HeldError, is_held
from fusionseg.utils.locks.owner import OWNER

HOLD = """
import fcntl, os, sys, time
from pathlib import Path
from fusionseg.utils.locks import folder_lock

def fail(*_):
    raise OSError(37, "No locks available")

fcntl.flock = fail
folder_lock.BEAT_S = 0.2
lock = folder_lock.FolderLock(Path(sys.argv[1]))
lock.acquire()
if behind := float(sys.argv[2]):  # the clock of this host stamps the files, and is behind
    utime = os.utime
    os.utime = lambda path, dir_fd: utime(path, (time.time() - behind, time.time() - behind), dir_fd=dir_fd)
    os.utime(".owner", dir_fd=lock._descriptor)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make file locks fail, as on NFS without a lock daemon or Lustre mounted without flock."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.2)
    monkeypatch.setattr(folder_lock, "SILENT_S", 1.0)
    monkeypatch.setattr(folder_lock, "REQUEUED_SILENT_S", 1.0)


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder, on a file system without locks; its job 7 was not requeued yet.

    The parameter is the number of seconds that its clock is behind; by default 0.
    """
    environ = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(getattr(request, "param", 0))]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on another machine than the processes that the test has started."""
    monkeypatch.setattr(owner, "machine_id", lambda: "another boot")


def test_second_lock_is_refused_until_the_first_is_released(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert not is_held(tmp_path)
    first.acquire()
    assert is_held(tmp_path)
    facts = rf"another process \(process {os.getpid()} on {re.escape(socket.gethostname())}, .*since \d.* UTC"
    with pytest.raises(HeldError, match=facts + r", last heartbeat 0 s ago\)"):
        second.acquire()
    first.release()
    assert not (tmp_path / OWNER).exists()
    assert not is_held(tmp_path)
    second.acquire()
    second.release()


def test_the_file_lock_decides_on_a_disk_of_this_machine(tmp_path: Path) -> None:
    """A container was killed, and its successor has another name. It does not wait for a heartbeat."""
    (tmp_path / OWNER).write_text(json.dumps({"host": "gone", "pid": 1, "machine": "of yesterday", "token": "x"}))
    start = time.monotonic()
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert time.monotonic() - start < 5
    lock.release()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.fault("no-file-locks")
def test_without_file_locks_the_owner_is_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    with caplog.at_level(logging.WARNING, "fusionseg"):
        first.acquire()
    assert f"{tmp_path}: file locks do not work here (No locks available)" in caplog.text
    assert_seen("no-file-locks", caplog.text)
    assert is_held(tmp_path)
    with pytest.raises(HeldError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        second.acquire()
    first.release()
    assert not (tmp_path / OWNER).exists() and not is_held(tmp_path)
    second.acquire()
    second.release()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("left", ["ended", "another process of this number", "nonsense", "empty", "wrong types"])
def test_owner_that_no_longer_exists_is_ignored(tmp_path: Path, left: str, caplog: pytest.LogCaptureFixture) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    pid = ended.pid if left == "ended" else os.getpid()
    text = json.dumps({"host": socket.gethostname(), "pid": pid, "started": "1"})  # of an older version
    wrong = json.dumps({"host": 3, "pid": "x", "since": None})
    (tmp_path / OWNER).write_text({"nonsense": "[", "empty": "", "wrong types": wrong}.get(left, text))
    os.utime(tmp_path / OWNER, (1, 1))
    assert not is_held(tmp_path)
    lock = FolderLock(tmp_path)
    with caplog.at_level(logging.WARNING, "fusionseg"):
        lock.acquire()
    assert f"{tmp_path}: taken over from another process" in caplog.text
    assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    lock.release()


@pytest.mark.usefixtures("no_locks")
def test_killed_process_of_this_machine_is_replaced_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(HeldError, match=f"process {holder.pid} on .*SLURM job 7"):
        FolderLock(tmp_path).acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_held(tmp_path)
    FolderLock(tmp_path).acquire()


@pytest.mark.usefixtures("no_locks", "elsewhere")
@pytest.mark.parametrize("holder", [0, 1000], indirect=True)
def test_owner_on_another_machine(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeat tells whether it lives, whatever the clock of this host says."""
    with monkeypatch.context() as patch, pytest.raises(HeldError, match=f"process {holder.pid} on"):
        patch.setattr(time, "time", lambda: 4e9)
        FolderLock(tmp_path).acquire()


@pytest.mark.usefixtures("no_locks", "elsewhere")
@pytest.mark.fault("owner-on-a-lost-host")
def test_silent_owner_on_another_machine_is_taken_over(
    tmp_path: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    holder.kill()
    holder.wait()
    with caplog.at_level(logging.INFO, "fusionseg"):
        FolderLock(tmp_path).acquire()
    assert "may have ended: waiting up to 1 s" in caplog.text
    assert_seen("owner-on-a-lost-host", caplog.text)
    assert f"taken over from another process (process {holder.pid} on" in caplog.text


@pytest.mark.usefixtures("no_locks", "elsewhere")
def test_a_requeued_job_waits_less(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "SILENT_S", 600.0)
    monkeypatch.setattr(folder_lock, "REQUEUED_SILENT_S", 1.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(HeldError):  # a node that SLURM has lost may still train
        FolderLock(tmp_path).acquire()
    holder.kill()
    holder.wait()
    FolderLock(tmp_path).acquire()
    assert json.loads((tmp_path / OWNER).read_text())["restarts"] == 1


@pytest.mark.usefixtures("elsewhere")
def test_locks_that_other_machines_do_not_see(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file lock succeeds on both machines, as on Lustre mounted with localflock: the heartbeat decides."""
    monkeypatch.setattr(folder_lock, "REQUEUED_SILENT_S", 1.0)
    monkeypatch.setattr(folder_lock, "is_shared", lambda folder: True)
    with pytest.raises(HeldError, match=f"process {holder.pid} on"):
        FolderLock(tmp_path).acquire()
    assert is_held(tmp_path)
    holder.kill()
    holder.wait()
    monkeypatch.setattr(folder_lock, "SILENT_S", 1.0)
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.release()
    assert not is_held(tmp_path)


@pytest.mark.parametrize(
    ("kind", "shared"), [("ext4", False), ("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("fuseblk", False)]
)
def test_kind_of_the_file_system(tmp_path: Path, kind: str, shared: bool) -> None:
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(
        "21 1 0:99999 / /proc rw shared:1 - nfs proc rw\n"
        f"36 35 {os.major(device)}:{os.minor(device)} / /with\\040space rw,noatime master:1 - {kind} server:/x rw\n"
    )
    assert is_shared(tmp_path, table) is shared
    assert not is_shared(tmp_path, tmp_path / "missing")


# -- the folder is lost while it is held ---------------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path) -> Iterator[FolderLock]:
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FolderLock(folder)
    assert lock.loss() is None
    lock.acquire()
    assert lock.loss() is None
    yield lock
    lock.release()


def test_removed_folder(held: FolderLock) -> None:
    shutil.rmtree(held.folder)
    loss = held.loss()
    assert loss is not None and (loss.what, loss.now) == ("was removed", None)
    held.release()
    assert not held.folder.exists()


def test_moved_folder(held: FolderLock, tmp_path: Path) -> None:
    held.folder.rename(tmp_path / "moved")
    loss = held.loss()
    assert loss is not None and (loss.what, loss.now) == (f"was moved to {tmp_path}/moved", tmp_path / "moved")
    held.release()
    assert not (tmp_path / "moved" / OWNER).exists() and not held.folder.exists()


def test_replaced_folder(held: FolderLock, tmp_path: Path) -> None:
    """The other folder has an owner too, which stays."""
    shutil.rmtree(held.folder)
    held.folder.mkdir()
    loss = held.loss()
    assert loss is not None and loss.what == "was removed, and another folder is in its place"
    other = FolderLock(held.folder)
    other.acquire()
    assert held.loss() == loss
    held.release()
    assert other.loss() is None and (held.folder / OWNER).exists()
    other.release()


def test_folder_that_another_process_has_taken_over(held: FolderLock) -> None:
    mine = (held.folder / OWNER).read_text()
    (held.folder / OWNER).write_text(json.dumps({"token": "x", "host": "node7", "pid": 12}))
    loss = held.loss()
    assert loss is not None and loss.now == held.folder
    assert loss.what == "was taken over by another process (process 12 on node7)"
    for content in ("", "[", mine):  # a file that says nothing is no reason to stop
        (held.folder / OWNER).write_text(content)
        assert held.loss() is None
    (held.folder / OWNER).unlink()
    assert held.loss() is None
