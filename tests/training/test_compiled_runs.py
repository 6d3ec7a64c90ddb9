"""`train.compile`: its mode, and the graphs of a whole run with validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusionseg.config import RunConfig, ValidateConfig, validate
from fusionseg.runs.records import read_records
from fusionseg.runs.run_config import refuse_other_config
from fusionseg.training.precision import Precision, precision_for, set_kernels
from fusionseg.training.start import train
from fusionseg.training.tasks.sliding_window import fill_batch, predict_logits
from fusionseg.utils.errors import UserError

CPU = torch.device("cpu")
SECTIONS: dict[str, dict[str, Any]] = {
    # Two micro-batches of a step have the same graph.
    "segmentation": {"train": {"steps": 2, "micro_batch": 1, "global_batch": 2, "compile": True}},
    "pretraining": {
        "train": {"steps": 2, "micro_batch": 2, "global_batch": 2, "compile": "max-autotune"},
        "model": {"name": "resenc_unet", "channels": [4, 8, 8], "blocks": [1, 1, 1], "deep_supervision": False},
        "pretrain": {"method": "blackout", "block": 8},
        "metrics": [],
    },
}


class Compiler:
    """A compiler in place of torch's own: it keeps the shapes of the graphs that it is given."""

    def __init__(self) -> None:
        self.modes: list[str] = []
        self.batches: list[int] = []

    def compile_module(self, module: nn.Module, *, mode: str, dynamic: bool) -> None:
        self.modes.append(mode)
        module._compiled_call_impl = torch.compile(  # type: ignore[assignment]
            module._call_impl, backend=self.compile_graph, dynamic=dynamic, fullgraph=True
        )

    def compile_graph(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        images = [value for value in inputs if isinstance(value, torch.Tensor) and value.shape[2:] == (16, 16, 16)]
        self.batches.append(int(images[0].shape[0]))
        return graph.forward


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    compiler = Compiler()
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiler.compile_module(module, **options))
    torch.compiler.reset()
    yield compiler
    torch.compiler.reset()


@pytest.mark.parametrize("name", SECTIONS)
def test_a_run_with_validations_compiles_two_graphs(
    name: str, balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], compiler: Compiler
) -> None:
    """One graph of the training and one of the validation, whatever the number of windows of a case."""
    settings = {"validate": {"every": 1, "window_batch": 5}, **SECTIONS[name]}
    config = validate({**tiny_config(balls, tmp_path).to_dict(), **settings})
    assert train(config) == "completed"
    assert compiler.modes == ["default" if name == "segmentation" else "max-autotune"]
    assert compiler.batches == [config.train.micro_batch, 5]
    assert [record["kind"] for record in read_records(tmp_path / "tiny")].count("val") == 2


class Means(nn.Module):
    """Two logits of each voxel, and the sizes of the batches that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return torch.cat([x.mean(dim=(2, 3, 4), keepdim=True) + x, 2 * x], dim=1)


@pytest.mark.parametrize("shape", [(5, 8, 8), (13, 13, 8)])
def test_filled_batches_have_one_size_and_do_not_change_the_logits(shape: tuple[int, int, int]) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    plain, filled = Means(), Means()
    plain_logits, filled_logits = (
        predict_logits(
            network,
            image,
            (0.0,),
            (8, 8, 8),
            ValidateConfig(window_batch=4),
            Precision("fp32", "", "cpu"),
            device=CPU,
            fills_batches=network is filled,
        )
        for network in (plain, filled)
    )
    assert torch.equal(plain_logits, filled_logits)
    assert sum(plain.batches) % 4 and set(filled.batches) == {4} and len(filled.batches) == len(plain.batches)


def test_a_full_batch_is_not_copied() -> None:
    windows = torch.rand(4, 1, 2, 2, 2)
    assert fill_batch(windows, 4) is windows
    assert torch.equal(fill_batch(windows[:3], 5), windows[[0, 1, 2, 2, 2]])


# -- settings of a GPU's kernels -------------------------------------------------------------------------------------


@pytest.fixture
def kernels() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[:2]
    torch.set_float32_matmul_precision(before[2])


def kernel_settings(config: RunConfig, device: torch.device) -> tuple[bool, bool, bool]:
    """Search of convolutions, convolutions in TF32, matrix products in TF32."""
    set_kernels(config.train, device)
    cudnn = torch.backends.cudnn
    return cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("kernels")
def test_kernels_are_set_on_a_gpu_alone(tiny_config: Callable[..., RunConfig]) -> None:
    gpu = torch.device("cuda", 0)
    chosen = {
        tf32: kernel_settings(tiny_config(None, Path(), train={"tf32": tf32, "cudnn_benchmark": True}), gpu)
        for tf32 in ("none", "convolutions", "all")
    }
    assert chosen == {"none": (True, False, False), "convolutions": (True, True, False), "all": (True, True, True)}
    assert torch.backends.cuda.matmul.allow_tf32
    assert kernel_settings(tiny_config(None, Path()), CPU) == (True, True, True)
    assert kernel_settings(tiny_config(None, Path()), gpu) == (False, True, False)


@pytest.mark.usefixtures("kernels")
def test_the_reason_of_fp32_names_what_is_in_tf32(tiny_config: Callable[..., RunConfig]) -> None:
    reasons = {}
    for tf32 in ("none", "convolutions", "all"):
        set_kernels(tiny_config(None, Path(), train={"tf32": tf32}).train, torch.device("cuda", 0))
        reasons[tf32] = precision_for("fp32", "cuda", (8, 0), native_bf16=True).reason
    assert reasons["none"] == precision_for("fp32", "cuda", (7, 5), native_bf16=False).reason == "as configured"
    assert "convolutions in TF32" in reasons["convolutions"]
    assert "convolutions and matrix products in TF32" in reasons["all"]


def test_a_run_of_an_older_version_continues_compiled(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(None, Path(), train={"compile": "default"})
    older = config.to_dict()
    assert older["train"].keys().isdisjoint({"cudnn_benchmark", "tf32"})
    older["train"]["compile"] = True
    refuse_other_config(Path("run"), older, config)
    searched = tiny_config(None, Path(), train={"compile": True, "cudnn_benchmark": True})
    refuse_other_config(Path("run"), older, searched)
    assert validate(searched.to_dict()) == searched
    for changed in ({"compile": "reduce-overhead"}, {"compile": True, "tf32": "all"}):
        with pytest.raises(UserError, match=r"train\.(compile|tf32)"):
            refuse_other_config(Path("run"), older, tiny_config(None, Path(), train=changed))
