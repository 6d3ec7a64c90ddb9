"""The sums of profiles: made by hand, where they are known, and of a real training loop, where they must add up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from traces import NCCL, ChromeTrace, NsysExport, two_steps

from fusionseg.observability.profiles.attribution import OUTSIDE
from fusionseg.observability.profiles.intervals import Nesting, gaps, overlap_length, total_length, union
from fusionseg.observability.profiles.kernel_kinds import kernel_kind
from fusionseg.observability.profiles.summary import summarise
from fusionseg.observability.profiles.timeline import DeviceEvent, HostEvent, Timeline, read_torch_trace
from fusionseg.observability.ranges import annotate
from fusionseg.performance.nsys_export import read_nsys_export

OTHER = 13


def us(microseconds: float) -> Any:
    return pytest.approx(microseconds * 1e-6, abs=2e-9)


def summary_of(made: ChromeTrace, tmp_path: Path) -> dict[str, Any]:
    summary = summarise(read_torch_trace(made.write(tmp_path / "trace.json")))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    return summary


@pytest.fixture(params=["torch", "nsys"])
def summary(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Of the two steps, by either reader."""
    if request.param == "torch":
        made = ChromeTrace()
        two_steps(made)
        return summary_of(made, tmp_path)
    export = NsysExport()
    two_steps(export)
    return summarise(read_nsys_export(export.write(tmp_path / "nsys.sqlite")))


def test_steps_and_phases(summary: dict[str, Any]) -> None:
    assert summary["window_s"] == us(2200)
    steps = summary["steps"]
    assert (steps["count"], steps["cut"], steps["slowest"]) == (2, 0, 101 if summary["tool"] == "nsys" else None)
    assert (steps["mean_s"], steps["median_s"], steps["max_s"]) == (us(1100), us(1100), us(1200))
    phases = summary["phases"]
    assert list(phases) == ["data", "augment", "forward", "loss", "backward", "optimizer"]
    assert {name: entry["count"] for name, entry in phases.items()} == dict.fromkeys(phases, 2)
    host = {"data": 50, "augment": 50, "forward": 200, "loss": 40, "backward": 360, "optimizer": 80}
    assert {name: entry["host_s"] for name, entry in phases.items()} == {name: us(2 * t) for name, t in host.items()}
    assert phases["backward"]["host_share"] == pytest.approx(720 / 2200)
    # Autograd's thread has no ranges: what it launched is the main thread's backward.
    device = {"data": 0, "augment": 0, "forward": 250, "loss": 0, "backward": 400, "optimizer": 50}
    assert {name: entry["gpu_s"] for name, entry in phases.items()} == {name: us(2 * t) for name, t in device.items()}
    assert [entry["kernels"] for entry in phases.values()] == [0, 0, 4, 0, 4, 2]
    assert (phases["augment"]["copies"], phases["augment"]["copy_s"]) == (2, us(40))
    outside = summary["outside_phases"]
    assert (outside["host_s"], outside["kernels"]) == (us(220 + 420), 0)
    assert outside["host_share"] == pytest.approx(640 / 2200)


def test_ranges_inside_phases(summary: dict[str, Any]) -> None:
    encoder, block = summary["ranges"]
    assert (encoder["name"], encoder["phase"], encoder["count"]) == ("encoder", "forward", 2)
    assert (encoder["total_s"], encoder["self_s"], encoder["gpu_s"]) == (us(280), us(140), us(2 * 250))
    assert (block["name"], block["total_s"], block["self_s"]) == ("encoder.block", us(140), us(140))
    assert block["gpu_s"] == us(2 * 200)


def test_idle_times(summary: dict[str, Any]) -> None:
    gpu = summary["gpu"]
    assert (gpu["busy_s"], gpu["gaps"], gpu["gaps_s"]) == (us(1300), 7, us(900))
    assert gpu["busy_share"] == pytest.approx(1300 / 2200)
    in_phase = {"data": 100, "augment": 60, "forward": 200, "backward": 140, OUTSIDE: 400}
    assert gpu["gaps_by_phase_s"] == {name: us(value) for name, value in in_phase.items()}
    longest = [(gap["start_s"], gap["duration_s"], gap["phase"]) for gap in gpu["longest_gaps"]]
    assert longest[:3] == [(us(1900), us(300), OUTSIDE), (us(900), us(160), OUTSIDE), (us(80), us(120), "forward")]


def test_kernels(summary: dict[str, Any]) -> None:
    kernels = summary["kernels"]
    assert (kernels["count"], kernels["total_s"]) == (12, us(2 * 720))
    by_kind = {kind: (entry["count"], entry["total_s"]) for kind, entry in kernels["by_kind"].items()}
    assert by_kind == {
        "communication": (2, us(400)),
        "copy": (2, us(40)),
        "matrix, convolution": (4, us(800)),
        "elementwise": (4, us(200)),
    }
    assert sum(entry["share"] for entry in kernels["by_kind"].values()) == pytest.approx(1)
    first = kernels["top"][0]
    assert (first["count"], first["total_s"], first["mean_s"]) == (2, us(400), us(200))


def test_communication_that_other_kernels_hide(summary: dict[str, Any]) -> None:
    talk = summary["communication"]
    assert (talk["source"], talk["total_s"], talk["exposed_s"]) == ("kernels", us(400), us(260))
    assert talk["exposed_share"] == pytest.approx(260 / 2200)


def test_operators(tmp_path: Path) -> None:
    made = ChromeTrace()
    two_steps(made)
    operators = summary_of(made, tmp_path)["operators"]
    own = {entry["name"]: (entry["count"], entry["self_cpu_s"], entry["gpu_s"]) for entry in operators["by_cpu"]}
    assert own == {
        "aten::copy_": (2, us(2 * 10), 0),  # what it launched is no kernel
        "aten::conv3d": (2, us(2 * 15), 0),
        "aten::convolution": (2, us(2 * 80), 0),
        "aten::cudnn_convolution": (2, us(2 * 20), us(2 * 200)),
        "ConvolutionBackward0": (2, us(2 * 70), us(2 * 200)),  # the all-reduce, that its hook launched
        "aten::convolution_backward": (2, us(2 * 70), us(2 * 200)),
        "aten::_foreach_add_": (2, us(2 * 30), us(2 * 50)),
    }
    assert operators["by_cpu"][0]["name"] == "aten::convolution"
    assert operators["by_gpu"][-1]["name"] == "aten::_foreach_add_" and len(operators["by_gpu"]) == 4
    found = {phase: [entry["name"] for entry in table["by_gpu"]] for phase, table in operators["by_phase"].items()}
    assert set(found.pop("backward")) == {"ConvolutionBackward0", "aten::convolution_backward"}
    assert found == {"augment": [], "forward": ["aten::cudnn_convolution"], "optimizer": ["aten::_foreach_add_"]}


def test_top_is_how_many_are_listed(tmp_path: Path) -> None:
    made = ChromeTrace()
    two_steps(made)
    summary = summarise(read_torch_trace(made.write(tmp_path / "trace.json")), top=1)
    tables = summary["operators"]["by_cpu"], summary["kernels"]["top"], summary["ranges"]
    assert [len(table) for table in tables] == [1, 1, 1]
    assert summary["kernels"]["total_s"] == us(2 * 720)


def test_an_allreduce_without_kernels_is_exposed(tmp_path: Path) -> None:
    """On a CPU: gloo."""
    made = ChromeTrace()
    made.range("step", 0, 100)
    made.range("backward", 10, 60)
    made.range("allreduce", 40, 60)
    summary = summary_of(made, tmp_path)
    assert list(summary["phases"]) == ["backward", "allreduce"]
    assert summary["phases"]["backward"]["host_s"] == us(30)
    talk = summary["communication"]
    assert (talk["source"], talk["total_s"], talk["exposed_s"], talk["exposed_share"]) == (
        "range", us(20), us(20), pytest.approx(0.2),
    )  # fmt: skip
    assert summary["gpu"] is None and summary["kernels"]["by_kind"] == {}


def test_gloos_threads_are_hidden_by_the_main_threads_operators(tmp_path: Path) -> None:
    """As DDP reduces on a CPU: in the background of `backward`, and waiting at its end."""
    made = ChromeTrace()
    made.range("step", 0, 100)
    made.range("backward", 0, 90)
    made.range("gloo:all_reduce", 20, 50, tid=OTHER)
    made.range("gloo:all_reduce", 40, 80, tid=OTHER + 1)
    made.operator("aten::mm", 5, 60)
    made.operator("c10d::allreduce_", 60, 65)  # asks for the next one, and hides nothing
    talk = summary_of(made, tmp_path)["communication"]
    assert (talk["source"], talk["total_s"], talk["exposed_s"]) == ("operators", us(60), us(20))


def test_phases_within_phases_and_ranges_outside_all(tmp_path: Path) -> None:
    made = ChromeTrace()
    made.range("validate", 0, 100)
    made.range("forward", 10, 70)
    made.range("window 3", 20, 60)
    made.range("own thing", 100, 130)  # no phase around it: one of its own
    made.range("part of it", 110, 120)
    summary = summary_of(made, tmp_path)
    host = {name: (entry["count"], entry["host_s"]) for name, entry in summary["phases"].items()}
    assert host == {"forward": (1, us(60)), "validate": (1, us(40)), "own thing": (1, us(30))}
    inside = {entry["name"]: entry["phase"] for entry in summary["ranges"]}
    assert inside == {"window 3": "forward", "part of it": "own thing"}
    assert summary["outside_phases"]["host_s"] == us(0)
    assert summary["steps"] == {"count": 0, "cut": 0}


def test_other_threads_are_no_part_of_the_window(tmp_path: Path) -> None:
    made = ChromeTrace()
    made.range("step", 0, 100)
    made.range("forward", 0, 90)
    made.range("checkpoint", 10, 80, tid=OTHER)
    made.work("kernel", "copy_kernel", 30, 40, launch=20, tid=OTHER)
    made.work("kernel", "fill_kernel", 50, 60, launch=85, tid=OTHER)  # none of its own is open then
    phases = summary_of(made, tmp_path)["phases"]
    assert (phases["checkpoint"]["host_s"], phases["checkpoint"]["other_threads_s"]) == (0, us(70))
    assert phases["forward"]["host_share"] == pytest.approx(0.9)
    assert (phases["checkpoint"]["kernels"], phases["forward"]["kernels"]) == (1, 1)


def test_what_the_edges_of_the_window_cut(tmp_path: Path) -> None:
    made = ChromeTrace()
    made.operator("aten::warm_up", -500, -400)
    made.work("kernel", "from before", -50, 20, launch=None)
    made.range("forward", 0, 40)
    made.range("step", 50, 120)
    made.range("step", 130, 160, cut=True)
    made.range("backward", 140, 160, cut=True)
    made.work("kernel", "never asked for", 400, 500, launch=None)
    summary = summary_of(made, tmp_path)
    assert summary["window_s"] == us(160)
    assert summary["steps"] == {
        "count": 1,
        "cut": 1,
        "mean_s": us(70),
        "median_s": us(70),
        "max_s": us(70),
        "slowest": None,
    }
    assert summary["phases"]["backward"]["host_s"] == us(20)
    assert (summary["outside_phases"]["gpu_s"], summary["outside_phases"]["kernels"]) == (us(20), 1)
    assert (summary["gpu"]["busy_s"], summary["gpu"]["gaps"]) == (us(20), 1)
    assert summary["operators"]["by_cpu"] == []


def test_short_pauses_are_no_gaps_and_streams_overlap(tmp_path: Path) -> None:
    made = ChromeTrace()
    made.range("step", 0, 100)
    made.work("kernel", "gemm", 0, 50, launch=0)
    made.work("kernel", "ncclDevKernel", 40, 60, launch=1, stream=NCCL)
    made.work("kernel", "relu", 65, 80, launch=2)
    made.work("kernel", "relu", 86, 100, launch=3)
    gpu = summary_of(made, tmp_path)["gpu"]
    assert (gpu["gaps"], gpu["gaps_s"], gpu["busy_s"]) == (1, us(6), us(60 + 15 + 14))


def test_nothing_but_operators(tmp_path: Path) -> None:
    made = ChromeTrace()
    made.operator("aten::add", 0, 10)
    summary = summary_of(made, tmp_path)
    assert (summary["phases"], summary["window_s"]) == ({}, us(10))
    assert summary["outside_phases"]["host_share"] == 1
    assert summarise(Timeline("empty", "nsys"))["window_s"] == 0


def test_a_real_training_loop(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            with annotate("step"):
                with annotate("data"):
                    image = torch.randn(1, 1, 10, 10, 10)
                with annotate("forward"):
                    for part in network:
                        with annotate(type(part).__name__):
                            image = part(image)
                with annotate("backward"):
                    image.square().mean().backward()
                with annotate("optimizer"):
                    optimizer.step()
                    optimizer.zero_grad()
    profiler.export_chrome_trace(str(tmp_path / "trace_rank0.json.gz"))
    summary = summarise(read_torch_trace(tmp_path / "trace_rank0.json.gz"), top=1000)
    assert (summary["steps"]["count"], summary["gpu"]) == (3, None)
    assert {name: entry["count"] for name, entry in summary["phases"].items()} == {
        "data": 3, "forward": 3, "backward": 3, "optimizer": 3,
    }  # fmt: skip
    host_s = sum(entry["host_s"] for entry in summary["phases"].values()) + summary["outside_phases"]["host_s"]
    assert host_s == pytest.approx(summary["window_s"])
    assert {entry["name"]: entry["count"] for entry in summary["ranges"]} == {"Conv3d": 6, "ReLU": 3}
    # Own times are those of torch's own table. (It counts an operator that calls one of its own name once.)
    ours = {entry["name"]: entry for entry in summary["operators"]["by_cpu"]}
    theirs = {event.key: event for event in profiler.key_averages() if event.key.startswith("aten::")}
    assert {name for name in ours if name.startswith("aten::")} == set(theirs)
    for name, event in theirs.items():
        assert ours[name]["self_cpu_s"] == pytest.approx(event.self_cpu_time_total * 1e-6, abs=2e-6)
    assert ours["aten::conv3d"]["count"] == ours["aten::convolution_backward"]["count"] == 6
    by_phase = summary["operators"]["by_phase"]
    assert "aten::convolution_backward" in {entry["name"] for entry in by_phase["backward"]["by_cpu"]}
    assert "aten::randn" in {entry["name"] for entry in by_phase["data"]["by_cpu"]}


def test_nesting_survives_rounded_clocks() -> None:
    events = [
        HostEvent("a", 0, 101, 1),
        HostEvent("b", 100, 200, 1),
        HostEvent("c", 120, 201, 1),
        HostEvent("other", 50, 60, 2),
    ]
    nesting = Nesting(events)
    assert nesting.parent == [None, None, 1, None]
    assert nesting.self_ns == [100, 20, 80, 10]  # the one nanosecond too many is nobody's
    assert [nesting.innermost(1, at) for at in (-1, 0, 100, 150, 200, 300)] == [None, 0, 1, 2, None, None]
    assert list(nesting.overlapping(1, (90, 130))) == [(90, 100, 0), (100, 120, 1), (120, 130, 2)]
    assert nesting.innermost(3, 55) is None and nesting.innermost(None, 55) is None


def test_the_arithmetic_of_intervals_against_counting() -> None:
    draw = random.Random(5)
    for _ in range(50):
        sets = [[(s, s + draw.randrange(8)) for s in (draw.randrange(-5, 60) for _ in range(8))] for _ in range(2)]
        bounds = (0, 50)
        covered = [{t for s, e in one for t in range(s, e) if 0 <= t < 50} for one in sets]
        first, second = (union(one, bounds) for one in sets)
        assert total_length(first) == len(covered[0])
        assert total_length(gaps(first, bounds)) == 50 - len(covered[0])
        assert overlap_length(first, second) == len(covered[0] & covered[1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "matrix, convolution"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT", "matrix, convolution"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "matrix, convolution"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<32, 128, 128, 4>>", "matrix, convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>", "copy"),
        ("void at::native::elementwise_kernel<128, 4, gpu_kernel_impl<direct_copy_kernel_cuda>>", "copy"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>", "copy"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512, true, 1, true>", "normalisation"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "normalisation"),
        ("void at::native::batch_norm_backward_reduce_kernel<float, float, float, int>", "normalisation"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, NormTwoOps<float>>>", "reduction"),
        ("void at::native::multi_tensor_apply_kernel<LpNormFunctor<float, NormType::L2>>", "reduction"),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 9, false, false>", "reduction"),
        ("triton_poi_fused_add_gelu_3", "elementwise"),
        ("triton_red_fused_native_group_norm_1", "normalisation"),
        ("void at::native::vectorized_elementwise_kernel<4, FillFunctor<float>>", "elementwise"),
        ("void at::native::upsample_trilinear3d_out_frame<float, float>", "other"),
    ],
)
def test_what_kernels_compute(name: str, kind: str) -> None:
    assert kernel_kind(DeviceEvent(name, "kernel", 0, 1, 0, 7)) == kind
    assert kernel_kind(DeviceEvent(name, "memset", 0, 1, 0, 7)) == "copy"
