"""`train.ema`: averages of the weights, beside torch's, in checkpoints, and in the network that is used afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.runs import assert_same_tensors, checkpoint, records
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training.recorded_training import SKIPPED, Training

from fusionseg.config import RunConfig, load_config, validate
from fusionseg.inference.trained_network import load_trained
from fusionseg.performance.step_memory import measured_step_bytes
from fusionseg.runs.checkpoints import AVERAGED, read_start
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.numerics.weight_averages import WeightAverages
from fusionseg.training.precision import Precision
from fusionseg.training.start import train
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError

FINITE = torch.tensor(True)


def test_averages_are_those_of_torch() -> None:
    training = Training(recorded=False)
    theirs = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(training.model)  # the first call copies
    ours = training.step.averages = WeightAverages(training.model, 0.9, warmup=False)
    statistics = training.model.norm.running_mean.clone()
    for step in range(SKIPPED[0]):
        training.train(step, step + 1)
        theirs.update_parameters(training.model)
        statistics.lerp_(training.model.norm.running_mean, 0.1)
    found = ours.state_dict()
    expected = dict(theirs.module.named_parameters()) | {"norm.running_mean": statistics}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-6, atol=1e-8)
    assert found.keys() - expected.keys() == {"norm.running_var"}


def test_a_skipped_step_moves_no_average() -> None:
    training = Training(recorded=False, ema=0.9)
    training.train(0, SKIPPED[0])
    assert training.step.averages is not None
    names = [name for name, _ in training.model.named_parameters()]
    before = {name: training.step.averages.state_dict()[name].clone() for name in names}
    training.train(SKIPPED[0], SKIPPED[0] + 1)
    after = training.step.averages.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in names)
    training.train(SKIPPED[0] + 1, SKIPPED[0] + 2)
    assert not any(torch.equal(before[name], after[name]) for name in names)


def test_the_decay_of_the_first_steps_is_lower() -> None:
    model = nn.Conv3d(1, 1, 1)
    averages = WeightAverages(model, 0.9, warmup=True)
    assert [averages.decay_of(step) for step in (0, 8, 80, 1000)] == [0.1, 0.5, 0.9, 0.9]
    assert WeightAverages(model, 0.9, warmup=False).decay_of(0) == 0.9


def test_the_network_has_its_own_weights_again_bit_for_bit() -> None:
    training = Training(recorded=False, ema=0.9)
    training.train(0, 3)
    averages = training.step.averages
    assert averages is not None
    own, averaged = ({name: x.clone() for name, x in each.state_dict().items()} for each in (training.model, averages))
    with pytest.raises(KeyboardInterrupt), averages.in_network():
        assert_same_tensors({**own, **averaged}, training.model.state_dict())
        raise KeyboardInterrupt
    assert_same_tensors(own, training.model.state_dict())
    assert_same_tensors(averaged, averages.state_dict())


def test_a_frozen_weight_and_other_buffers_are_not_averaged_and_a_shared_weight_has_all_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "frozen": nn.Linear(2, 2), "norm": nn.InstanceNorm3d(2)})
    model["frozen"].requires_grad_(False)
    model["b"] = nn.Linear(2, 2, bias=False)
    model["b"].weight = model["a"].weight
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # the average of an infinity would be a NaN
    averages = WeightAverages(model, 0.5, warmup=False)
    with torch.no_grad():
        model["a"].weight += 2
    averages.begin(0)
    averages.update(FINITE)
    state = averages.state_dict()
    assert list(state) == ["a.weight", "b.weight"]
    assert torch.equal(state["a.weight"], model["a"].weight - 1) and torch.equal(*state.values())
    averages.restart()
    assert torch.equal(averages.state_dict()["b.weight"], model["a"].weight)


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda state: state.pop("weight"), "one of the two only: weight"), (lambda s: s.update(weight=FINITE), "size")],
)
def test_averages_of_another_network_are_refused(change: Callable[[dict[str, Any]], Any], problem: str) -> None:
    averages = WeightAverages(nn.Conv3d(1, 1, 1), 0.9, warmup=True)
    state = averages.state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=problem):
        averages.load_state_dict(state)


def test_the_averaged_weights_are_validated_and_used(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """best.pt has the weights that were validated; last.pt has both, and its averages are used."""
    config = tiny_config(balls, tmp_path, train={"steps": 4, "ema": 0.9})
    train(config)
    run = tmp_path / "tiny"
    last, best = checkpoint(run), checkpoint(run, "best.pt")
    assert [record["step"] for record in records(run, "val")] == [4]
    assert best["step"] == last["step"] == 4 and AVERAGED not in best
    assert_same_tensors(best["model"], {**last["model"], **last[AVERAGED]})
    assert not torch.equal(*(each["model"]["model.0.conv.unit0.conv.weight"] for each in (best, last)))
    cpu = torch.device("cpu")
    for which in ("best", "last"):
        assert_same_tensors(load_trained(run, cpu, which).model.state_dict(), best["model"])
    for name in ("best.pt", "last.pt"):
        assert_same_tensors(read_start(run / "checkpoints" / name)["model"], best["model"])

    # The weights of the training are those of a run without averages.
    train(tiny_config(balls, tmp_path, name="plain", train={"steps": 4}))
    plain = checkpoint(tmp_path / "plain")
    assert_same_tensors(plain["model"], last["model"])
    assert_same_tensors(plain["train_step"], last["train_step"])
    assert AVERAGED not in plain
    assert records(run, "val")[0]["dice"] != records(tmp_path / "plain", "val")[0]["dice"]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_estimate_of_memory_has_the_averages(micro_batches: int) -> None:
    """A network whose weights take more memory than its activations."""
    raw: dict[str, Any] = {"model": {"name": "unet", "channels": [64, 128]}, "data": {"patch": [16, 16, 16]}}
    raw["train"] = {"global_batch": micro_batches, "micro_batch": 1, "precision": "fp32"}
    plain, averaged = validate(raw), validate({**raw, "train": {**raw["train"], "ema": 0.99}})
    estimates = [
        estimate_memory(build_task(each), each, 1, 2, precision=Precision("fp32", "", "cpu"))
        for each in (plain, averaged)
    ]
    assert estimates[1].weights - estimates[0].weights == 4 * estimates[0].parameters
    for config, estimate in zip((plain, averaged), estimates, strict=True):
        measured = measured_step_bytes(config, "fp32", in_channels=1, out_channels=2)
        assert estimate.tensors == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("value", [0, 1, "true", "high"])
def test_values_that_are_no_decay_are_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"train\.ema \(command line"):
        load_config("demo", [f"train.ema={value}"])
