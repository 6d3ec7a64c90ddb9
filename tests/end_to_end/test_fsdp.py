"""`distributed.parallel: fsdp`: the training of one rank, and checkpoints that every kind of run continues."""

from __future__ import annotations

import signal
from pathlib import Path

import torch

from end_to_end.conftest import Train, arguments
from end_to_end.runs import Program, assert_same_training, checkpoint, tensors, wait_for_step

RUN = (
    "train={steps: 20, global_batch: 4, micro_batch: 1, precision: fp32, clip_grad: 1.0, ema: 0.9}",
    "validate.every=10",
    "checkpoint.every=3",
    "log.samples=true",
    "model.channels=[5, 9]",  # two ranks have unequal parts of the weights
)
FSDP = "distributed.parallel=fsdp"


def test_the_training_of_one_rank_and_its_checkpoints(
    program: Program, config_file: Path, train: Train, tmp_path: Path
) -> None:
    """One run stays on one rank; another goes from two ranks with DDP to two with fsdp, and ends on one."""
    whole, changing = tmp_path / "whole", tmp_path / "changing"
    train(whole, *RUN).expect(0)

    for step, settings in ((5, ()), (13, (FSDP,))):
        ranks = program.ranks(2, *arguments(config_file, changing, *RUN, *settings))
        wait_for_step(changing, step, ranks)
        for rank in ranks:
            rank.send(signal.SIGKILL)
        errors = [rank.wait().err for rank in ranks]
    assert "resuming from" in errors[0] and "divided among 2 ranks, in " in errors[0]
    train(changing, *RUN).expect(0)

    assert_same_training(changing, whole)
    ended, expected = tensors(checkpoint(changing)), tensors(checkpoint(whole))
    assert {name: (value.shape, value.dtype) for name, value in ended.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }
    averages = [name for name in ended if name.startswith("/averaged/")]
    assert len(averages) == len([name for name in ended if name.startswith("/model/")])
    for name in averages:
        if not name.endswith("conv.weight"):  # the gradients of biases before a norm are rounding errors
            continue
        assert torch.allclose(ended[name], expected[name], rtol=1e-2, atol=1e-3), name
        assert not torch.allclose(ended[name], ended[name.replace("/averaged/", "/model/")], rtol=1e-3, atol=1e-4)
