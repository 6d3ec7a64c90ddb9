"""Operations and bytes counted by hand, and the roofline of a tiny training through the command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fusionseg.config import RunConfig, dump_config
from fusionseg.distributed.device_speed import DeviceRates
from fusionseg.models.cost import network_cost
from fusionseg.models.operator_costs import Call, total_cost
from fusionseg.performance.operator_costs import OperatorRecorder, PhaseClock, follow_phases
from fusionseg.training import step

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[2] / "profiling" / "roofline.py"


def watch(work: Callable[[], object]) -> dict[str, Call]:
    """The calls of some work by their operator; each must be called once."""
    with OperatorRecorder(CPU) as seen:
        work()
    calls = seen.calls()
    assert len({call.kind for call in calls}) == len(calls), [call.kind for call in calls]
    return {call.kind: call for call in calls}


def test_a_matrix_product_and_its_gradients() -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    (forward,) = watch(lambda: a @ b).values()
    assert (forward.kind, forward.flops, forward.bytes) == ("mm", 2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    product, ones = a @ b, torch.ones(3, 5)
    with OperatorRecorder(CPU) as seen:
        product.backward(ones)
    products = [call for call in seen.calls() if call.kind == "mm"]
    assert sum(call.flops for call in products) == 2 * forward.flops
    assert sum(call.bytes for call in products) == 2 * forward.bytes


def test_a_convolution_and_its_gradients() -> None:
    image = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, 3, requires_grad=True)
    forward = watch(lambda: functional.conv3d(image, weight, padding=1))["convolution"]
    assert forward.flops == 2 * 2 * 64 * 5 * 3 * 27
    assert forward.bytes == 4 * (2 * 3 * 64 + 5 * 3 * 27 + 2 * 5 * 64)
    loss = functional.conv3d(image, weight, padding=1).sum()
    backward = watch(loss.backward)["convolution_backward"]
    assert backward.flops == 2 * forward.flops
    image.requires_grad_(False)  # the first layer of a network: no gradient of the image
    backward = watch(functional.conv3d(image, weight, padding=1).sum().backward)["convolution_backward"]
    assert backward.flops == forward.flops


def test_views_move_nothing_and_new_memory_only_when_it_is_filled() -> None:
    tensor = torch.randn(4, 6)
    assert watch(lambda: tensor.view(2, 12)[0].unsqueeze(1).expand(-1, 3).t().detach()) == {}
    assert watch(lambda: (torch.empty(1000), tensor.new_empty(7), torch.empty_like(tensor))) == {}
    assert watch(lambda: tensor.t().reshape(-1))["clone"].bytes == 2 * 96  # cannot be a view
    assert sum(call.bytes for call in watch(lambda: torch.zeros(10)).values()) == 40


def test_what_is_read_and_written() -> None:
    x, y = torch.randn(8), torch.randn(8)
    assert watch(lambda: x + y)["add"].bytes == 3 * 32
    assert watch(lambda: x.add_(y))["add_"].bytes == 3 * 32  # x twice: read and written
    assert watch(lambda: x.copy_(y))["copy_"].bytes == 2 * 32
    assert watch(lambda: x.zero_())["zero_"].bytes == 32
    assert watch(lambda: torch.add(x, y, out=y))["add"].bytes == 3 * 32
    one = torch.ones(()).expand(8)
    assert watch(lambda: x + one)["add"].bytes == 2 * 32 + 4
    assert watch(lambda: x.to(torch.bfloat16))["_to_copy"].bytes == 32 + 16


def test_the_optimizer_reads_and_writes_its_state() -> None:
    weight = torch.nn.Parameter(torch.randn(100))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(100)
    optimizer.step()
    with OperatorRecorder(CPU) as seen:
        optimizer.step()
    (call,) = (call for call in seen.calls() if call.kind == "_fused_adamw_")
    # weight, gradient and two moments, read and written, and the step's number
    assert call.bytes == 2 * 4 * 400 + 4


def test_attention_on_a_cpu_counts() -> None:
    q = torch.randn(1, 2, 16, 8)
    with torch.no_grad():
        calls = watch(lambda: functional.scaled_dot_product_attention(q, q, q))
    assert calls["_scaled_dot_product_flash_attention_for_cpu"].flops == 2 * 2 * 2 * 16 * 16 * 8


def test_a_product_in_place_counts_as_any_other() -> None:
    left, right, total = torch.ones(3, 4), torch.ones(4, 5), torch.ones(3, 5)
    with OperatorRecorder(torch.device("cpu")) as seen:
        torch.addmm(total, left, right)
        total.addmm_(left, right)
        torch.ones(2, 3, 5).baddbmm_(torch.ones(2, 3, 4), torch.ones(2, 4, 5))
        total.add_(1)
    assert [call.flops for call in seen.calls() if call.flops] == [120, 120, 240]


def test_the_same_operations_as_torch_counts() -> None:
    model = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.PReLU(), torch.nn.Conv3d(4, 2, 3))
    image = torch.randn(2, 1, 8, 8, 8)
    with FlopCounterMode(display=False) as counter:
        model(image).sum().backward()
    with OperatorRecorder(CPU) as seen:
        model(image).sum().backward()
    assert sum(call.flops for call in seen.calls()) == counter.get_total_flops()


def test_the_bound_is_that_of_each_call() -> None:
    calls = [Call("", "a", flops=100, bytes=1, seconds=9), Call("", "b", flops=0, bytes=30, seconds=9)]
    cost = total_cost(calls, flops_per_s=10, bytes_per_s=10)
    assert (cost.bound_s, cost.compute_bound_s, cost.limited_by) == (13, 10, "operations")
    assert (cost.calls, cost.flops, cost.bytes, cost.seconds) == (2, 100, 31, 18)
    assert total_cost(calls, 100, 1).limited_by == "bytes"
    assert total_cost([], 1, 1).bound_s == 0


def test_each_rate_is_the_best_of_two_measurements() -> None:
    first, second = DeviceRates({512: 5.0}, 9.0, 3.0, 4.0), DeviceRates({512: 7.0}, 8.0, 6.0, 2.0)
    best = first.best_of(second)
    assert best == second.best_of(first) == DeviceRates({512: 7.0}, 9.0, 6.0, 4.0)
    assert (best.flops_per_s, best.bytes_per_s) == (9.0, 6.0)


def test_phases_are_followed_and_left_alone_afterwards() -> None:
    before = step.annotate
    clock = PhaseClock(CPU)
    with pytest.raises(KeyError), follow_phases(clock):
        with step.annotate("forward"):
            pass
        with step.annotate("forward"), step.annotate("loss"):
            pass
        raise KeyError
    assert list(clock.seconds()) == ["forward", "loss"]
    assert step.annotate is before


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tiny_training(
    script: ModuleType,
    balls: Path,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(balls, tmp_path / "runs", train={"global_batch": 4, "micro_batch": 2})
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    out, figure = tmp_path / "roofline.json", tmp_path / "roofline.svg"
    words = ["--config", tmp_path / "tiny.yaml", "--data", balls, "--steps", 2, "--json", out, "--figure", figure]
    monkeypatch.setattr(sys, "argv", ["roofline.py", *map(str, words), "--other", "312", "2039", "seed=3"])
    assert script.main() == 0
    result = json.loads(out.read_text())
    assert {"data", "forward", "loss", "backward", "optimizer"} <= result["phases"].keys()
    cost = network_cost(config.model, config.data.patch, in_channels=1, out_channels=3)
    forward, backward = result["phases"]["forward"], result["phases"]["backward"]
    assert forward["flops"] == 2 * 4 * cost.multiply_adds
    # twice as much, but for the gradient of the image
    assert 1.5 * forward["flops"] < backward["flops"] < 2 * forward["flops"]
    assert result["multiply_adds"] * 2 == result["step"]["flops"] == forward["flops"] + backward["flops"]
    assert sum(phase["seconds"] for phase in result["phases"].values()) <= 1.5 * result["step"]["seconds"]
    assert all(0 < phase["share_of_bound"] < 20 for phase in result["phases"].values())
    assert 0 < result["mfu"] < 1.5
    assert result["operators"]["convolution"]["flops"] <= forward["flops"]
    parameters = cost.parameters * 4
    assert result["phases"]["optimizer"]["bytes"] > 7 * parameters
    assert 0 < result["other_devices"][0]["bound_s"] < result["step"]["bound_s"]
    assert result["machine"]["torch"] == torch.__version__
    assert figure.read_text().lstrip().startswith("<?xml")
    assert "MFU" in capsys.readouterr().out


def test_what_cannot_be_measured(
    script: ModuleType,
    balls: Path,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config(balls, tmp_path / "runs")))
    start = ["roofline.py", "--config", str(tmp_path / "tiny.yaml"), "--data", str(balls)]
    monkeypatch.setattr(sys, "argv", [*start, "--steps", "0", "--other", "-1", "5"])
    assert script.main() == 2
    said = capsys.readouterr().err
    assert "--steps: " in said and "got 0" in said and "--other: " in said and "got -1 5" in said
    monkeypatch.setattr(sys, "argv", [*start, "train.compile=true"])
    assert script.main() == 2
    assert "train.compile" in capsys.readouterr().err
