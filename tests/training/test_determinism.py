"""`train.deterministic`: torch's mode, what has no deterministic algorithm on a GPU, and the messages about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.runs import assert_same_tensors, checkpoint, records
from faults.catalogue import assert_seen
from tiny_networks import tiny
from torch import nn

from fusionseg.config import RunConfig, TrainConfig, validate
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.training.numerics.determinism import naming_operators, set_deterministic
from fusionseg.training.numerics.deterministic_operators import refuse_unfit_operators, unfit_operators
from fusionseg.training.precision import Precision, set_kernels
from fusionseg.training.start import train
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import TrainingStopped, UserError

DETERMINISTIC, OTHER = TrainConfig(deterministic=True), TrainConfig()


@pytest.fixture(autouse=True)
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    yield
    set_deterministic(OTHER)
    assert not torch.are_deterministic_algorithms_enabled()


def unfit(model: dict[str, Any], loss: str = "dice_ce", precision: str = "bf16") -> list[str]:
    config = validate({**model, "loss": {"name": loss}, "train": {"global_batch": 1, "micro_batch": 1}})
    found = unfit_operators(
        build_task(config), config, in_channels=1, out_channels=2, precision=Precision(precision, "", "cuda")
    )
    return [text.partition(" (")[0] for text in found]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("unet", []),
        ("resunet", ["average pooling"]),
        ("attention_unet", ["trilinear interpolation"]),
        ("swin_fusion_od", []),
    ],
)
def test_networks_whose_step_can_be_deterministic(network: str, expected: list[str]) -> None:
    assert unfit(tiny(network), precision="fp16") == expected


def test_a_network_that_cannot_be_deterministic_is_refused_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))  # no GPU is here
    scheme = LabelScheme.of_names(["background", "ball"])
    settings = {"train": {"deterministic": True, "precision": "fp32"}}
    fits, unfit, other = (validate({**tiny(name), **each}) for name, each in
                          (("unet", settings), ("resunet", settings), ("resunet", {})))  # fmt: skip
    for config, device in ((fits, "cuda"), (unfit, "cpu"), (other, "cuda")):
        refuse_unfit_operators(config, torch.device(device), in_channels=1, scheme=scheme)
    expected = r"train\.deterministic: .*average pooling \(avg_pool3d_backward\), which resunet .*model\.name.*false"
    with pytest.raises(UserError, match=expected):
        refuse_unfit_operators(unfit, torch.device("cuda"), in_channels=1, scheme=scheme)


@pytest.mark.parametrize("loss", ["dice", "dice_focal", "cross_entropy", "dice_ce"])
def test_built_in_losses_can_be_deterministic(loss: str) -> None:
    assert unfit(tiny("unet"), loss) == []


def test_parts_of_the_users_own_are_looked_at(user_folder: Path) -> None:
    (user_folder / "own_mean.py").write_text(
        "import torch\n\n\ndef mean_loss(output, target):\n"
        "    return torch.nn.functional.cross_entropy(output, target[:, 0])\n"
    )
    assert unfit(tiny("unet"), "own_mean:mean_loss") == ["the mean or sum of a cross-entropy or NLL loss of voxels"]


def test_a_training_gives_the_same_bits_and_later_ones_are_not_in_the_mode(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """On a CPU all algorithms are deterministic: no operator of a training and its validation is refused."""
    train(tiny_config(balls, tmp_path, name="plain"))
    assert not torch.are_deterministic_algorithms_enabled()
    train(tiny_config(balls, tmp_path, name="deterministic", train={"deterministic": True}))
    assert torch.are_deterministic_algorithms_enabled()
    set_kernels(OTHER, torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_tensors(*(checkpoint(tmp_path / name) for name in ("plain", "deterministic")))


def test_a_mode_of_the_users_own_program_stays() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        set_deterministic(OTHER)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    set_deterministic(DETERMINISTIC)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match=r"train\.deterministic: .*CUBLAS_WORKSPACE_CONFIG is :0:0 .*unset it"):
        set_deterministic(DETERMINISTIC)


@pytest.mark.fault("no-deterministic-algorithm")
def test_an_operator_that_is_found_in_the_training_ends_it_with_its_name(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Tensor.put_` has no deterministic algorithm on a CPU either."""
    forward = nn.Conv3d.forward

    def put(self: nn.Conv3d, image: torch.Tensor) -> torch.Tensor:
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))
        return forward(self, image)

    config = tiny_config(balls, tmp_path, train={"deterministic": True})
    monkeypatch.setattr(nn.Conv3d, "forward", put)
    with pytest.raises(TrainingStopped) as stopped:
        train(config)
    assert_seen("no-deterministic-algorithm", str(stopped.value), tmp_path / "tiny")
    end = records(tmp_path / "tiny", "end")[-1]
    assert end["status"] == "failed" and end["reason"].startswith("train.deterministic: ")


def test_other_errors_are_passed_on() -> None:
    with pytest.raises(RuntimeError, match="another"), naming_operators():
        raise RuntimeError("another")


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"train\.deterministic: train\.cudnn_benchmark"):
        validate({"model": {"name": "unet"}, "train": {"deterministic": True, "cudnn_benchmark": True}})
