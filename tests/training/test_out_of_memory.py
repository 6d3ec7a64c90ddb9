"""A training that lacks memory: the message has the phase, the sizes, and what each setting would save."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fusionseg.training.memory.out_of_memory import device_of_error, is_out_of_memory
from fusionseg.training.start import train
from fusionseg.training.step import TrainStep
from fusionseg.utils.errors import TrainingStopped


def test_message_of_an_error_in_the_second_step(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real step raises torch's own error in its second optimizer step; torch fills no GPU here."""
    reduce, calls = TrainStep._reduce, []

    def fail(self: TrainStep, losses: list[torch.Tensor]) -> object:
        if losses[0].device.type == "cpu":  # not the counted step on the meta device
            calls.append(None)
            if len(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")
        return reduce(self, losses)

    monkeypatch.setattr(TrainStep, "_reduce", fail)
    config = tiny_config(balls, tmp_path, data={"patch": [64, 64, 64]}, train={"global_batch": 4, "micro_batch": 4})
    with pytest.raises(TrainingStopped) as raised:
        train(config)
    first, *lines = str(raised.value).splitlines()
    assert first.startswith("out of memory on cpu: optimizer in step 2, monai_unet with train.micro_batch 4")
    assert "data.patch 64 x 64 x 64" in first and "in this process" in first
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB)" in first
    halved, smaller, *others = (line.strip() for line in lines)
    assert halved.startswith("train.micro_batch=2: about ") and "needs --extend" in halved
    assert smaller.startswith("data.patch=[32, 32, 32]: about ")
    saved, of, less = (float(words.split()[-1]) for words in (*halved.split(" GB")[:2], smaller.split(" GB")[0]))
    assert 0.3 * of < saved < 0.7 * of  # most of this step is the activations of its micro-batch
    assert saved < less < of
    assert others[0].startswith("train.micro_batch=auto: ")
    assert others[1] == "in a validation: a lower validate.window_batch"
    end = json.loads((tmp_path / "tiny/metrics.jsonl").read_text().splitlines()[-1])
    assert end["status"] == "failed" and end["reason"].startswith("OutOfMemoryError: CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "cuda"),
        (RuntimeError("CUDA error: out of memory"), "cuda"),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cuda"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "cpu"),
        (MemoryError(), "cpu"),
    ],
)
def test_the_device_is_that_of_the_error(error: BaseException, device: str) -> None:
    """A training on a GPU may lack memory of its host, and the advice is another one."""
    assert is_out_of_memory(error) and device_of_error(error, torch.device("cuda")).type == device
    assert not is_out_of_memory(RuntimeError("shapes differ"))
