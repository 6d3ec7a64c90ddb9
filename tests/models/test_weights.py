"""Loading of weights: matching tensors, the report, refusals, files that cannot be read."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusionseg.models import build_model
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.weights.loading import load_weights, read_state
from fusionseg.utils.errors import UserError


def network(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.", "model.", "module._orig_mod."])
def test_weights_with_a_prefix_are_loaded(prefix: str) -> None:
    source, model = network(), network()
    report = load_weights(model, {prefix + name: x for name, x in source.state_dict().items()}, min_share=1)
    assert_equal(copied(model), copied(source))
    assert (report.matched, report.total, report.share) == (9, 9, 1.0)
    assert str(report).partition("; ")[0] == "loaded 9 of 9 tensors (100.0 % of the parameters)"


def test_partial_match_is_reported() -> None:
    model, state = network(), copied(network())
    del state["0.bias"]
    state["2.weight"] = torch.zeros(3, 8)
    state["head.weight"] = torch.zeros(1)
    before = copied(model)
    report = load_weights(model, state)
    # Buffers are tensors but not parameters: 4 x 8 + 8 + 8 + 2 of 4 x 8 + 8 + 8 + 8 + 8 x 2 + 2.
    assert (report.matched, report.total) == (7, 9)
    assert (report.matched_parameters, report.total_parameters) == (50, 74)
    assert report.missing == ("0.bias",)
    assert report.unexpected == ("head.weight",)
    assert report.mismatched == (("2.weight", (2, 8), (3, 8)),)
    assert str(report) == (
        "loaded 7 of 9 tensors (67.6 % of the parameters); not found: 0.bias;"
        " shape differs: 2.weight (model (2, 8), file (3, 8)); not used: head.weight"
    )
    after = copied(model)
    assert torch.equal(after["0.weight"], state["0.weight"])
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert torch.equal(after["2.weight"], before["2.weight"])


@pytest.mark.parametrize("min_share", [0.0, 0.5, 1.0])
def test_match_below_min_share_is_refused_and_changes_nothing(min_share: float) -> None:
    model = network()
    before = copied(model)
    state = {"1.num_batches_tracked": torch.tensor(7), "2.bias": torch.ones(2)} if min_share else {}
    state |= {"encoder.weight": torch.zeros(1), "0.weight": torch.zeros(9, 4)}
    with pytest.raises(UserError) as caught:
        load_weights(model, state, min_share=min_share, source="other.pt")
    message = str(caught.value)
    assert message.startswith("other.pt: ")
    for part in ("0.bias", "encoder.weight", "0.weight (model (8, 4), file (9, 4))", "nothing was loaded"):
        assert part in message
    assert "\n" not in message
    assert_equal(copied(model), before)


def test_weights_of_the_plain_swin_network_load_into_a_fused_one() -> None:
    small: dict[str, Any] = {"feature_size": 12, "depths": (1, 1, 1, 1)}
    plain = build_model(SwinConfig(name="swin_unetr", **small), in_channels=1, out_channels=2)
    fused = build_model(SwinConfig(name="swin_fusion_1_v1", **small), in_channels=1, out_channels=2)
    report = load_weights(fused, plain.state_dict())
    assert report.matched == len(plain.state_dict())
    assert report.share > 0.95
    assert not report.unexpected and not report.mismatched
    assert {name.split(".")[0] for name in report.missing} == {"fusion"}


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict", "net", "network_weights", "student"])
@pytest.mark.parametrize("old_format", [False, True])
def test_read_state_finds_the_state_dict(tmp_path: Path, key: str | None, old_format: bool) -> None:
    state = copied(network())
    content: dict[str, Any] = {key: state, "step": 3, "rng": torch.zeros(2)} if key else dict(state)
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    assert_equal(read_state(path), state)


@pytest.mark.parametrize("numpy_1", [False, True])
def test_read_state_ignores_numbers_and_arguments(tmp_path: Path, numpy_1: bool) -> None:
    """Checkpoints of other programs hold them; torch.load(weights_only=True) alone would refuse these files."""
    state, path = copied(network()), tmp_path / "weights.pt"
    numbers = {f"best_{kind}": np.dtype(kind).type(1) for kind in ("f4", "f8", "i8")}
    torch.save({"epoch": 3, **numbers, "args": Namespace(lr=np.float64(0.1)), "state_dict": state}, path)
    if numpy_1:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_equal(read_state(path), state)


class Unsafe:
    """An object that only torch.load(weights_only=False) could load."""


UNREADABLE = ["missing", "garbage", "truncated", "empty", "object", "no weights", "a list"]


@pytest.mark.parametrize("content", UNREADABLE)
def test_unreadable_files_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pt"
    if content == "garbage":
        path.write_bytes(b"not weights at all")
    elif content == "truncated":
        torch.save(copied(network()), path)
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "empty":
        path.touch()
    elif content == "object":
        torch.save({"model": Unsafe()}, path)
    elif content == "no weights":
        torch.save({"step": 1, "model": {}}, path)
    elif content == "a list":
        torch.save([1, 2], path)
    with pytest.raises(UserError) as caught:
        read_state(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
