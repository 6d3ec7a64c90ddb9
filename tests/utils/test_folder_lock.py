"""Lock of a folder, with and without file locks of the file system."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionseg.utils import folder_lock
from fusionseg.utils.folder_lock import OWNER, FolderLock, HeldError, is_held


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make file locks fail, as on NFS without a lock daemon or Lustre mounted without flock."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.2)
    monkeypatch.setattr(folder_lock, "SILENT_S", 1.0)


def test_second_lock_is_refused_until_the_first_is_released(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert not is_held(tmp_path)
    first.acquire()
    assert is_held(tmp_path)
    with pytest.raises(HeldError, match="another process"):
        second.acquire()
    assert not (tmp_path / OWNER).exists()
    first.release()
    assert not is_held(tmp_path)
    second.acquire()
    second.release()


@pytest.mark.usefixtures("no_locks")
def test_without_file_locks_the_owner_is_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    with caplog.at_level(logging.WARNING, "fusionseg"):
        first.acquire()
    assert f"{tmp_path}: file locks do not work here (No locks available)" in caplog.text
    assert is_held(tmp_path)
    with pytest.raises(HeldError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        second.acquire()
    first.release()
    assert not (tmp_path / OWNER).exists() and not is_held(tmp_path)
    second.acquire()
    second.release()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("left", ["ended", "another process of this number", "nonsense", "empty"])
def test_owner_that_no_longer_exists_is_ignored(tmp_path: Path, left: str) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    pid = ended.pid if left == "ended" else os.getpid()
    text = json.dumps({"host": socket.gethostname(), "pid": pid, "started": "1"})
    (tmp_path / OWNER).write_text({"nonsense": "[", "empty": ""}.get(left, text))
    os.utime(tmp_path / OWNER, (1, 1))
    assert not is_held(tmp_path)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    lock.release()


@pytest.mark.usefixtures("no_locks")
def test_owner_on_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is renewed as long as the owner lives."""
    alive = FolderLock(tmp_path)
    alive.acquire()
    here = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    with pytest.raises(HeldError, match=f"process {os.getpid()} on {here}"):
        FolderLock(tmp_path).acquire()
    assert is_held(tmp_path)
    assert alive._beat is not None
    alive._beat.set()  # as if the owner had been killed
    time.sleep(0.3)
    FolderLock(tmp_path).acquire()
    assert json.loads((tmp_path / OWNER).read_text())["host"] == "another"
