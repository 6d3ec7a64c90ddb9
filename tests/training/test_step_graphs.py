"""`train.cuda_graph`: recorded steps give the numbers of steps that are not, and what cannot be recorded is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from training.recorded_operators import RecordedOperators
from training.recorded_training import SKIPPED, WARM_UP, Training, assert_same

from fusionseg.config import RunConfig, validate
from fusionseg.distributed.world import World
from fusionseg.models import build_model
from fusionseg.runs.records import read_records
from fusionseg.training import start
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.start import train
from fusionseg.training.step_graphs import StaticBatch, build_step_graphs, open_recorder
from fusionseg.utils.errors import TrainingStopped, UserError

STEPS = 7


@pytest.mark.parametrize("micro_steps", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_recorded_steps_have_the_same_bits(optim: str, precision: str, micro_steps: int) -> None:
    """Batches, learning rates, seeds, loss scale, a skipped step: all of it changes while Python does not run."""
    plain, recorded = (
        Training(recorded=each, optim=optim, precision=precision, micro_steps=micro_steps, ema=0.9)
        for each in (False, True)
    )
    expected, found = plain.train(0, STEPS), recorded.train(0, STEPS)
    assert torch.tensor(found).nan_to_num(7).equal(torch.tensor(expected).nan_to_num(7))
    assert expected[SKIPPED[0]][3] > expected[SKIPPED[0] - 1][3], "the step with a NaN is skipped"
    assert_same(recorded, plain)
    assert recorded.recorder.recordings == micro_steps
    assert recorded.recorder.replays == micro_steps * (STEPS - WARM_UP)


def test_steps_are_recorded_anew_when_frozen_parameters_begin_to_learn() -> None:
    plain, recorded = (Training(recorded=each, frozen=3) for each in (False, True))
    plain.train(0, STEPS)
    recorded.train(0, STEPS)
    assert_same(recorded, plain)
    # Step 2 is recorded. From step 3 on more parameters learn: 3 and 4 make their states, and 5 is recorded.
    assert (recorded.recorder.recordings, recorded.recorder.replays) == (2, 3)


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_a_recorded_run_continues_a_plain_one_and_the_reverse(optim: str) -> None:
    whole = Training(recorded=False, optim=optim)
    whole.train(0, 2 * STEPS)
    for first in (False, True):
        before, after = Training(recorded=first, optim=optim), Training(recorded=not first, optim=optim)
        before.train(0, STEPS)
        state = before.state()
        assert {type(group["lr"]) for group in state["step"]["optimizer"]["param_groups"]} == {float}
        after.train(0, 4)  # what it has recorded until here is not replayed
        after.model.load_state_dict(state["model"])
        after.step.load_state_dict(state["step"])
        after.train(STEPS, 2 * STEPS)
        assert_same(after, whole)


# -- micro-batches ---------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    label: Tensor
    annotated: Tensor


def test_a_micro_batch_is_copied_to_one_place() -> None:
    """Tensors keep their layout, and one that is an input and a target is copied once."""
    static = StaticBatch()
    image = torch.rand(2, 3, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    first = static(MicroBatch((image, image), Pair(image, torch.ones(2)), seed=1))
    pointer = first.inputs[0].data_ptr()
    assert first.inputs[0] is first.inputs[1] is first.target.label and pointer != image.data_ptr()
    assert first.inputs[0].stride() == image.stride() and isinstance(first.target, Pair)
    other = image + 1
    second = static(MicroBatch((other, other), Pair(other, torch.zeros(2)), seed=2))
    assert second.inputs[0].data_ptr() == pointer and second.seed == 2
    assert torch.equal(second.inputs[0], other) and not second.target.annotated.any()


@pytest.mark.parametrize(
    ("inputs", "target", "found"),
    [
        ((torch.zeros(1, 1, 4, 4, 5),), torch.zeros(1), r"got float32 \(1, 1, 4, 4, 5\), float32 \(1,\)"),
        ((torch.zeros(1, 1, 4, 4, 4),), torch.zeros(1, dtype=torch.int64), "got .*, int64"),
        ((torch.zeros(1, 1, 4, 4, 4),), (torch.zeros(1), 2), "got .*, 2"),
    ],
)
def test_a_micro_batch_of_another_form_is_refused(inputs: tuple[Tensor], target: Any, found: str) -> None:
    static = StaticBatch()
    static(MicroBatch((torch.zeros(1, 1, 4, 4, 4),), torch.zeros(1), seed=0))
    with pytest.raises(TrainingStopped, match=rf"train\.cuda_graph: .*expected float32 \(1, 1, 4, 4, 4\).*{found}"):
        static(MicroBatch(inputs, target, seed=0))


def test_tensors_that_would_not_be_copied_are_refused() -> None:
    with pytest.raises(TrainingStopped, match=r"train\.cuda_graph: .*got SimpleNamespace"):
        StaticBatch()(MicroBatch((torch.zeros(1),), SimpleNamespace(label=torch.zeros(1)), seed=0))


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_step_that_reads_a_value_is_refused() -> None:
    training = Training(recorded=True)
    training.step.loss = lambda output, target: output.mean() * float(output.max() > -1e9)
    training.train(0, WARM_UP)
    with pytest.raises(TrainingStopped, match=r"train\.cuda_graph: .*not permitted.*set it to false"):
        training.train(WARM_UP, WARM_UP + 1)
    assert not any(group["capturable"] for group in training.step.optimizer.param_groups)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"train": {"compile": "reduce-overhead"}}, r"train\.cuda_graph: train\.compile reduce-overhead"),
        ({"profile": {"stages": True}}, r"profile\.stages: .*train\.cuda_graph=false"),
    ],
)
def test_settings_that_do_not_fit(
    tiny_config: Callable[..., RunConfig], settings: dict[str, Any], problem: str
) -> None:
    train = {**settings.pop("train", {}), "cuda_graph": True}
    with pytest.raises(UserError, match=problem):
        tiny_config(None, Path(), train=train, **settings)
    assert tiny_config(None, Path(), train={"compile": "default", "cuda_graph": True}).train.cuda_graph


def test_parts_that_wait_for_the_device_are_refused(tiny_config: Callable[..., RunConfig]) -> None:
    settings = {"cuda_graph": True, "checkpoint_activations": True}
    swin = {"name": "swin_unetr", "feature_size": 12, "depths": [1, 1, 1, 1], "drop_path_rate": 0.1}
    novograd = {"optim": {"name": "novograd"}, "data": {"patch": [32, 64, 32]}}
    config = validate({**novograd, "model": swin, "train": settings})
    world = World.from_environment("cpu")
    network = build_model(config.model, in_channels=1, out_channels=2, patch=config.data.patch)
    network.further = nn.SyncBatchNorm(2)
    optimizer = build_optimizer(config.optim, network.parameters())
    with pytest.raises(UserError) as caught:
        build_step_graphs(RecordedOperators(), config, world, network, optimizer)
    assert [text.split(":")[0] for text in caught.value.problems] == ["train.cuda_graph"] * 3
    for problem, word in zip(caught.value.problems, ("novograd", "batch norm", "drop_path_rate"), strict=True):
        assert word in problem
    plain, config = Training(recorded=False), tiny_config(None, Path(), train={"cuda_graph": True})
    assert build_step_graphs(RecordedOperators(), config, world, plain.model, plain.step.optimizer).warm_up == 3


def test_a_run_on_the_cpu_is_refused(balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"train\.cuda_graph: needs a GPU"):
        train(tiny_config(balls, tmp_path, train={"cuda_graph": True}))
    assert open_recorder(tiny_config(None, tmp_path), World.from_environment("cpu")) is None


@pytest.mark.parametrize(("key", "value"), [("gradients", "bf16"), ("parallel", "fsdp")])
def test_what_is_not_known_to_be_recorded_on_several_ranks_is_refused(
    tiny_config: Callable[..., RunConfig], key: str, value: str
) -> None:
    config = tiny_config(None, Path(), train={"cuda_graph": True}, distributed={key: value})
    ranks: Any = SimpleNamespace(size=2, device=torch.device("cuda", 0))
    with pytest.raises(UserError, match=rf"train\.cuda_graph: .*distributed\.{key} {value}"):
        open_recorder(config, ranks)


# -- a whole run -----------------------------------------------------------------------------------------------------


def test_a_whole_run_has_the_records_of_a_plain_one(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its validations, checkpoints and end. The network has been trained by replayed steps."""
    recorder = RecordedOperators()
    monkeypatch.setattr(start, "open_recorder", lambda config, _: recorder if config.train.cuda_graph else None)
    found = []
    for cuda_graph in (False, True):
        config = tiny_config(
            balls,
            tmp_path,
            name="recorded" if cuda_graph else "plain",
            train={"steps": 8, "global_batch": 2, "precision": "bf16", "cuda_graph": cuda_graph},
            optim={"name": "adamw", "lr": 2**-7},
            validate={"every": 4},
        )
        assert train(config) == "completed"
        records = read_records(tmp_path / config.name)
        found.append([{k: v for k, v in r.items() if k in ("loss", "grad_norm", "dice_per_class")} for r in records])
    assert found[0] == found[1]
    assert sum("loss" in record for record in found[0]) == 8 + 2  # steps and validations
    assert recorder.recordings == 2 and recorder.replays == 2 * (8 - 3)
