"""The folder of a divided checkpoint: its content, what is refused, and ranks that fail, are silent or leave."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import PrefixStore, TCPStore

from fusionseg.distributed.messages.store_messages import StoreMessages
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.checkpoints import find_weights, newest_intact, peek_config, read_checkpoint
from fusionseg.runs.disk.failures import DiskFailures
from fusionseg.runs.divided import folders, rank_zero
from fusionseg.runs.divided.content import DividedContent, divide, state_bytes
from fusionseg.runs.divided.index import read_index, write_index
from fusionseg.runs.divided.other_ranks import PartWriter
from fusionseg.runs.divided.part_file import write_part
from fusionseg.runs.divided.rank_zero import DividedWriter
from fusionseg.runs.paths import has_weights, numbered_checkpoints, obstacles, part_name, run_of_weights
from fusionseg.utils.errors import TrainingStopped, UserError

STATE: dict[str, Any] = {
    "config": {"name": "run", "optim": {"betas": (0.9, 0.999)}},
    "model": torch.nn.BatchNorm1d(3).state_dict(),
    "optimizer": {
        "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.randn(5, 2)}},
        "param_groups": [{"lr": 0.1}],
    },
    "types": [torch.randn(3).bfloat16(), torch.tensor([True, False]), torch.randn(3).half(), torch.arange(4)],
    "layout": torch.randn(2, 3, 4, 5).permute(0, 3, 1, 2),
    "nothing": torch.empty(0, 3),
    "a/b": torch.ones(2),
    "a": {"b": torch.zeros(2)},
    "plain": [None, True, 3, 2.5, "text", float("inf"), 1e-300, (1, (2,)), {"$x": 1}],
}


def written(path: Path, state: Any = STATE) -> Path:
    """A divided checkpoint of one rank."""
    content = divide(state, 0)
    with folders.whole_folder(path) as temporary:
        files = {part_name(0): write_part(temporary / part_name(0), content.parts)}
        write_index(temporary, content, files)
    return path


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other) or (isinstance(one, dict) and isinstance(other, dict))
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def test_a_state_is_read_as_it_was_saved(tmp_path: Path) -> None:
    path = written(tmp_path / "checkpoints/step_00000001")
    found = read_checkpoint(path)
    assert_same(found, STATE)
    assert found["model"]._metadata == STATE["model"]._metadata
    assert peek_config(path) == STATE["config"]
    assert load_file(path / part_name(0)).keys() == read_index_names(path), (
        "any program for safetensors reads the parts"
    )
    assert state_bytes(STATE) == sum(tensor.bytes for tensor in read_index(path).tensors)


def read_index_names(path: Path) -> set[str]:
    return {tensor.name for tensor in read_index(path).tensors}


def test_what_json_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match="the entry a/0 is a set"):
        divide({"a": [{1}]}, 0)
    with pytest.raises(TypeError, match="complex64 cannot be stored"):
        divide({"a": torch.zeros(1, dtype=torch.complex64)}, 0)


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change an index, and give it the hash of its new content, as someone who means harm would."""
    from fusionseg.runs.divided import index

    body = json.loads((path / "index.json").read_text())
    del body["sha256"]
    change(body)
    (path / "index.json").write_text(json.dumps({"sha256": index._hash_of(body), **body}))


def test_every_damage_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    def refused(damage: Callable[[Path], object]) -> str:
        path = written(tmp_path / f"{len(os.listdir(tmp_path))}/checkpoints/step_00000001")
        damage(path)
        with pytest.raises(UserError) as error:
            read_checkpoint(path)
        assert str(error.value).startswith(f"{path}: damaged checkpoint (")
        return str(error.value)[len(f"{path}: damaged checkpoint (") : -1]

    part = part_name(0)

    def flip(name: str, at: int) -> Callable[[Path], object]:
        def damage(path: Path) -> None:
            content = bytearray((path / name).read_bytes())
            content[at] ^= 1
            (path / name).write_bytes(content)

        return damage

    assert refused(lambda path: (path / part).unlink()) == f"{part}: is missing"
    assert refused(lambda path: os.truncate(path / part, 100)).startswith(f"{part}: has 100 bytes, not ")
    assert refused(flip(part, -1)) == refused(flip(part, 20)) == f"{part}: its hash is wrong"
    assert refused(lambda path: (path / "index.json").unlink()) == "index.json: is missing"
    assert refused(lambda path: os.truncate(path / "index.json", 100)).startswith("index.json: ")
    assert refused(lambda path: (path / "index.json").write_text("[]")).startswith("index.json: is no index")
    changed = (path := written(tmp_path / "x/step_00000001")) / "index.json"
    changed.write_text(changed.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(UserError, match=r"index\.json: its hash is wrong"):
        read_checkpoint(path)

    def index(change: Callable[[dict[str, Any]], Any]) -> str:
        return refused(lambda path: edited(path, change))

    wrong = {"bytes": 1, "sha256": ""}
    assert "names a file '../secret'" in index(lambda body: body["files"].update({"../secret": wrong}))
    assert "is of version 2" in index(lambda body: body.update(fusionseg_divided=2))
    assert "larger than its files" in index(lambda body: body["tensors"]["layout"].update(shape=[10**6, 10**6]))
    assert "unknown type" in index(lambda body: body["tensors"]["layout"].update(dtype="object"))
    assert "has no rows" in index(lambda body: body["tensors"]["layout"].update(rows=0))
    assert "more parts than" in index(lambda body: body["tensors"]["layout"].update(rows=1))
    assert "another shape or type" in index(lambda body: body["tensors"]["layout"].update(shape=[2, 5, 4, 3]))
    assert "maximum recursion" in refused(lambda path: (path / "index.json").write_text("[" * 10**5))
    assert peek_config(tmp_path / f"{len(os.listdir(tmp_path)) - 1}/checkpoints/step_00000001") is None
    assert "lacks an entry" in index(lambda body: body.pop("entries"))
    assert "index.json: 'gone'" in index(lambda body: body["entries"].update(a={"$tensor": "gone"}))


def test_names_of_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = run / "checkpoints"
    assert not has_weights(run)
    for name in ("step_00000002", "step_00000002.1", "step_00000001"):
        written(folder / name, {"name": name})
    torch.save({"name": "file"}, folder / "step_00000003.pt")
    assert [path.name for _, path in numbered_checkpoints(folder)] == [
        "step_00000003.pt", "step_00000002.1", "step_00000002", "step_00000001",
    ]  # fmt: skip
    (folder / "step_00000003.pt").unlink()
    found = newest_intact(folder)
    assert found is not None and found[1] == {"name": "step_00000002.1"}
    assert has_weights(run) and find_weights(run) == folder / "step_00000002.1", "on a disk without links"
    folders.point_to(folder / "last.pt", folder / "step_00000001")
    assert find_weights(run) == folder / "last.pt" and read_checkpoint(folder / "last.pt") == {"name": "step_00000001"}
    assert run_of_weights(folder / "step_00000002.1") == run_of_weights(folder / "last.pt") == run
    assert obstacles(folder) == []
    (folder / "step_00000009").write_text("")
    (folder / "best.pt").mkdir()
    assert {path.name for path in obstacles(folder)} == {"step_00000009", "best.pt"}


def test_a_disk_without_links_has_no_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "step_00000001", {})
    (tmp_path / "last.pt").write_text("older")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    folders.point_to(tmp_path / "last.pt", path)
    assert [each.name for each in tmp_path.iterdir()] == ["step_00000001"]


# -- ranks ---------------------------------------------------------------------------------------------------


class Ranks:
    """Two ranks in this process, with a real store."""

    def __init__(self, folder: Path, *, timeout_s: float = 60.0, retry_s: float = 60.0) -> None:
        folder.mkdir()
        store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
        self.server: TCPStore | None = store
        self.folder = folder
        own = PrefixStore("run", TCPStore("127.0.0.1", store.port, None, False, wait_for_workers=False))
        self.divided = DividedWriter(folder, StoreMessages(own, 0, 2), timeout_s)
        self.failures = DiskFailures(retry_s, pause_s=0.05)
        self.writer = CheckpointWriter(folder, 3, failures=self.failures, divided=self.divided)
        self.other_messages = StoreMessages(own, 1, 2)
        self.other = PartWriter(folder, self.other_messages, nullcontext)

    def save(self, step: int, **more: Any) -> None:
        # The second rank holds a replicated tensor too, which rank 0 writes.
        state = {"step": step, "weight": torch.full((2,), float(step)), **more}
        saver = threading.Thread(target=lambda: self.other.save(divide(state, 1).parts))
        saver.start()
        self.writer.save_divided(step, divide(state, 0))
        saver.join(60)
        assert not saver.is_alive()

    def close(self) -> None:
        self.writer.close(5.0)
        self.other.close(5.0)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    made = Ranks(tmp_path / "checkpoints")
    yield made
    made.close()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_checkpoints_of_two_ranks(ranks: Ranks) -> None:
    for step in (1, 2, 3, 4):
        ranks.save(step)
    ranks.writer.finish()
    ranks.other.settle()
    assert names(ranks.folder) == ["last.pt", "step_00000002", "step_00000003", "step_00000004"]
    assert names(ranks.folder / "last.pt") == ["index.json", part_name(0), part_name(1)]
    found = read_checkpoint(ranks.folder / "last.pt")
    assert found["step"] == 4 and found["weight"].tolist() == [4, 4]
    ranks.save(4, again=True)
    ranks.writer.finish()
    assert names(ranks.folder) == ["last.pt", "step_00000002", "step_00000003", "step_00000004"]
    assert os.readlink(ranks.folder / "last.pt") == "step_00000004"
    assert read_checkpoint(ranks.folder / "last.pt")["again"]
    ranks.writer.delete_after(2)
    assert names(ranks.folder) == ["last.pt", "step_00000002"]


def test_a_refused_part_is_written_again(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt has a new folder; the ranks keep their copies until one is on disk, or another one replaces them."""
    from fusionseg.runs.divided import other_ranks

    refusals = [True, True]

    def write(path: Path, tensors: dict[str, torch.Tensor]) -> Any:
        if refusals and refusals.pop():
            raise OSError(28, "No space left on device")
        return write_part(path, tensors)

    monkeypatch.setattr(other_ranks, "write_part", write)
    ranks.save(1)
    ranks.writer.finish()
    assert names(ranks.folder) == ["last.pt", "step_00000001"] and not refusals
    refusals += [True] * 1000
    ranks.save(2)
    ranks.writer.settle()
    refusals.clear()
    ranks.save(3)
    ranks.writer.finish()
    assert names(ranks.folder) == ["last.pt", "step_00000001", "step_00000003"]


def test_a_silent_rank_is_named_after_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusionseg.runs.divided import other_ranks

    ranks = Ranks(tmp_path / "checkpoints", timeout_s=0.5, retry_s=0.0)
    is_free = threading.Event()

    def hang(path: Path, tensors: dict[str, torch.Tensor]) -> Any:
        is_free.wait(60)
        return write_part(path, tensors)

    monkeypatch.setattr(other_ranks, "write_part", hang)
    ranks.save(1)
    began = time.monotonic()
    with pytest.raises(TrainingStopped) as stopped:
        ranks.writer.finish()
    assert time.monotonic() - began < 10
    assert "a checkpoint (the part of rank 1) could not be written (no answer in " in str(stopped.value)
    assert "(distributed.timeout_s)" in str(stopped.value)
    is_free.set()
    ranks.close()
    assert not [name for name in names(ranks.folder) if name.startswith("step")]


def test_a_lost_store_is_a_failure_of_the_checkpoint(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "checkpoints", retry_s=0.0)
    ranks.save(1)
    ranks.writer.finish()
    ranks.other.settle()
    assert ranks.divided.messages.is_alive()
    ranks.server = None
    limit = time.monotonic() + 30
    while ranks.divided.messages.is_alive():
        assert time.monotonic() < limit
        time.sleep(0.05)
    ranks.save(2)
    with pytest.raises(TrainingStopped, match="the ranks cannot reach their store any more"):
        ranks.writer.finish()
    ranks.other.settle()
    ranks.writer.save(3, {"step": 3})
    ranks.writer.failures = DiskFailures(0.0)
    ranks.writer.finish()
    assert names(ranks.folder) == ["last.pt", "step_00000001", "step_00000003.pt"]
    ranks.close()


def test_a_training_that_ends_does_not_wait_for_a_lost_rank(ranks: Ranks) -> None:
    state = {"step": 1}
    ranks.writer.save_divided(1, divide(state, 0))  # the other rank saves nothing
    began = time.monotonic()
    ranks.writer.close(0.2)
    assert time.monotonic() - began < 5
    assert not [name for name in names(ranks.folder) if not name.startswith(".")]


def test_an_error_of_rank_zero_leaves_no_folder(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, content: DividedContent, files: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rank_zero, "write_index", refuse)
    ranks.save(1)
    limit = time.monotonic() + 30
    while not ranks.failures.failing:
        ranks.writer.check()
        assert time.monotonic() < limit
    assert not names(ranks.folder)
    monkeypatch.setattr(rank_zero, "write_index", write_index)
    ranks.writer.finish()
    assert names(ranks.folder) == ["last.pt", "step_00000001"]
