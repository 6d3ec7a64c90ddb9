"""Test-time flips of a network that was trained with mirrored labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionseg.config import AugmentConfig
from fusionseg.data.labels.scheme import Region
from fusionseg.inference.flips import flips_of
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.inference.window_network import WindowNetwork
from fusionseg.utils.errors import UserError

ALL = [(), (0,), (0, 1), (0, 1, 2), (0, 2), (1,), (1, 2), (2,)]


def with_augmentation(member: TrainedNetwork, sigmoid: Any = (), **augment: Any) -> TrainedNetwork:
    """A network that was trained with an augmentation. With `sigmoid`, the outputs are regions of these classes."""
    config = member.config.model_copy(update={"augment": AugmentConfig.model_validate(augment)})
    regions = tuple(Region(str(classes), classes, 1 + i) for i, classes in enumerate(sigmoid))
    return replace(member, config=config, scheme=replace(member.scheme, regions=regions))


@pytest.fixture
def predict(tiny_run: Callable[..., Path]) -> Callable[..., Callable[[Tensor], Tensor]]:
    """`predict(**augment)` -> the averaged logits (K, X, Y, Z) of a window (C, X, Y, Z)."""
    predictor = Predictor([tiny_run()], PredictOptions(device="cpu", flips=True))

    def of(**augment: Any) -> Callable[[Tensor], Tensor]:
        member = with_augmentation(predictor.members[0], **augment)
        network = WindowNetwork(member, predictor.device, flips_of(member), range(3))
        return lambda image: network(image[None])[0]

    return of


def test_the_mirrored_image_has_the_mirrored_prediction(predict: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    """With the left-right flip among those of the average, this holds for any network."""
    image = torch.randn((1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    swapped = [0, 2, 1]
    both = predict(flip={"prob": 0.5, "axes": ["x"]}, mirror_pairs=[["ball1", "ball2"]])
    logits, mirrored = both(image), both(image.flip(1))
    torch.testing.assert_close(mirrored.flip(1)[swapped], logits, atol=1e-5, rtol=0)
    assert (logits[1] - logits[2]).abs().max() > 0.01
    plain = predict(flip={"prob": 0.5, "axes": ["x"]})
    torch.testing.assert_close(plain(image.flip(1)).flip(1), plain(image), atol=1e-5, rtol=0)
    # The same two predictions, with the classes exchanged in one of them.
    alone = predict(flip={"prob": 0.5, "axes": ["y"]}), predict(flip=0.5)
    assert not any(torch.allclose(one(image), logits, atol=1e-4) for one in alone)


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ({}, ALL),
        ({"flip": 0.0}, [()]),
        ({"flip": {"axes": ["z", "x"]}}, [(), (0,), (0, 2), (2,)]),
        ({"mirror_pairs": [["ball1", "ball2"]]}, ALL),
        ({"mirror_pairs": [["ball1", "ball2"]], "sigmoid": [(1,), (1, 2)]}, [(), (1,), (1, 2), (2,)]),
    ],
)
def test_the_axes_are_those_of_the_training(tiny_run: Callable[..., Path], augment: Any, expected: Any) -> None:
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            seen.append(windows[0])
            return torch.zeros(1, 3, *windows.shape[2:])

    predictor = Predictor([tiny_run()], PredictOptions(device="cpu"))
    member = with_augmentation(predictor.members[0], **augment)
    window = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    WindowNetwork(replace(member, model=Recorder()), predictor.device, flips_of(member), range(3))(window[None])
    flips = [axes for axes in ALL if any(torch.equal(one, window.flip([axis + 1 for axis in axes])) for one in seen)]
    assert flips == sorted(expected) and len(seen) == len(expected)


def test_a_network_trained_without_flips_is_not_flipped(
    tiny_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flipped, unflipped = tiny_run() / "checkpoints/last.pt", tmp_path / "unflipped.pt"
    state = torch.load(flipped, weights_only=True)
    state["config"]["augment"]["flip"] = 0.0
    torch.save(state, unflipped)
    with pytest.raises(UserError, match=r"^--tta .*no flip to average over .*augment\.flip is 0.*predict without it$"):
        Predictor([unflipped], PredictOptions(device="cpu", flips=True))
    # In an ensemble, the other members are flipped, and the log names this one.
    with caplog.at_level("INFO", logger="fusionseg"):
        Predictor([flipped, unflipped], PredictOptions(device="cpu", flips=True))
    assert [str(unflipped) in line for line in caplog.messages if "has not seen flipped images" in line] == [True]
