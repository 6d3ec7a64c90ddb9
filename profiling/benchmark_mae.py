"""Benchmark of the two pre-training methods: hidden blocks left out of the encoder (mae), or set to zero (blackout).

    python profiling/benchmark_mae.py [--patch 96 96 96] [--block 32] [--feature-size 24] [--windows 7 4] [--rounds 5]

The encoders are Swin with each of the window sizes and the ViT of UNETR. For each encoder the program measures
`blackout`, whose encoder computes on the whole patch, and the masked autoencoder at each masking ratio. It measures the
encoder's forward pass, its forward and backward pass, a whole step (network, SSIM loss, backward, AdamW), and the peak
memory beyond the weights and what stays allocated between steps. The column `decoder` is the time of the decoder's
forward pass divided by that of the encoder.

The methods are timed alternately, so that other load on the machine affects all of them alike. A ratio is the median of
the ratios within each round.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from math import nan, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.pretraining import PretrainConfig, ReconstructionLossConfig
from fusionseg.distributed.device_speed import timed
from fusionseg.losses.reconstruction import ReconstructionLoss
from fusionseg.models.masked import build_masked
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.networks.unetr import UNETRConfig
from fusionseg.performance.benchmarking import cudnn_argument, publish
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.machine import process_memory_bytes
from fusionseg.utils.tables import markdown_table

PARTS = ("encoder forward", "encoder", "decoder forward", "step")
Triple = tuple[int, int, int]


class Subject:
    """One pre-training method of one encoder, on a batch that stays on the device."""

    def __init__(self, model: NetworkSection, pretrain: PretrainConfig, arguments: argparse.Namespace) -> None:
        patch: Triple = tuple(arguments.patch)
        if problems := pretrain.problems(model.name, patch, model.pretrain_methods):
            raise UserError("; ".join(problems))
        self.device = torch.device(arguments.device)
        self.half = arguments.precision == "bf16"
        torch.manual_seed(0)
        self.network: Any = build_masked(model, pretrain, in_channels=1, patch=patch).to(self.device)
        self.encoder: nn.Module = self.network.get_submodule(str(model.encoder))
        self.loss = ReconstructionLoss(ReconstructionLossConfig(), data_range=6.0)
        self.optimizer = torch.optim.AdamW(p for p in self.network.parameters() if p.requires_grad)
        grid = pretrain.grid(patch)
        order = torch.rand(arguments.batch, prod(grid)).argsort(dim=1)
        self.hidden = (order < pretrain.num_hidden(patch)).view(-1, *grid).to(self.device)
        self.image = torch.randn(arguments.batch, 1, *patch, device=self.device)
        self.states: Any = None

    def work(self, part: str) -> Callable[[], object]:
        """Function that is timed for one of PARTS."""
        return {
            "encoder forward": self._encode,
            "encoder": self._encode_and_back,
            "decoder forward": self._decode,
            "step": self._step,
        }[part]

    def _encode(self) -> None:
        with torch.no_grad(), self._autocast():
            self.states = self.network.encode(self.image, self.hidden)

    def _decode(self) -> None:
        with torch.no_grad(), self._autocast():
            self.network.decode(self.states, self.hidden)

    def _encode_and_back(self) -> None:
        with self._autocast():
            states = self.network.encode(self.image, self.hidden)
        states = [states] if isinstance(states, Tensor) else states
        torch.stack([state.float().square().mean() for state in states]).sum().backward()
        self.network.zero_grad(set_to_none=True)

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            volume = self.network(self.image, self.hidden)
        self.loss(volume, (self.image, self.hidden)).backward()
        self.optimizer.step()
        self.network.zero_grad(set_to_none=True)

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()


def peak_gb(work: Callable[[], object], device: torch.device) -> float:
    """Peak memory of a call in GB beyond the memory allocated before it; nan where the system does not report it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that the allocator keeps would hide what the call allocates
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak of the resident set
    except OSError:
        return nan
    before = process_memory_bytes("VmRSS")
    work()
    return (process_memory_bytes("VmHWM") - before) / 1e9


def measure(name: str, model: NetworkSection, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Measure all methods of one encoder; one row for each method.

    Args:
        name: name of the encoder in the result.
        model: network with the encoder.
        arguments: values of the command line.
    """
    mae = {f"mae {ratio:.0%}": {"method": "mae", "ratio": ratio} for ratio in arguments.ratios}
    settings = {"blacked out": {"method": "blackout", "ratio": max(arguments.ratios)}, **mae}
    subjects = {
        form: Subject(model, PretrainConfig.model_validate({**given, "block": arguments.block}), arguments)
        for form, given in settings.items()
    }
    times: dict[tuple[str, str], list[float]] = {(form, part): [] for form in subjects for part in PARTS}
    names = list(subjects)
    for index in range(arguments.rounds + 1):
        first = index % len(names)
        for form in names[first:] + names[:first]:
            for part in PARTS:
                seconds = timed(subjects[form].work(part), subjects[form].device)
                if index:  # the first round warms up
                    times[form, part].append(seconds)
    rows = []
    for form, subject in subjects.items():
        peaks = {part: peak_gb(subject.work(part), subject.device) for part in ("encoder", "step")}
        rows.append(
            {
                "network": name,
                "form": form,
                "median_ms": {part: 1e3 * statistics.median(times[form, part]) for part in PARTS},
                "spread_ms": {part: 1e3 * _spread(times[form, part]) for part in PARTS},
                "share_of_blacked_out": {part: _ratio(times[form, part], times["blacked out", part]) for part in PARTS},
                "decoder_over_encoder": _ratio(times[form, "decoder forward"], times[form, "encoder forward"]),
                "peak_gb": peaks,
            }
        )
    return rows


def _spread(times: list[float]) -> float:
    return statistics.stdev(times) if len(times) > 1 else 0.0


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    parts = ("encoder forward ms", "with backward ms", "/ blacked out", "peak GB")
    rows = [("encoder", "method", *parts, "step ms", "/ blacked out", "peak GB", "decoder / encoder")]
    for row in result["rows"]:
        median, share, peak = row["median_ms"], row["share_of_blacked_out"], row["peak_gb"]
        encoder = (f"{median['encoder forward']:.0f}", f"{median['encoder']:.0f}", f"{share['encoder']:.2f}")
        step = (f"{median['step']:.0f}", f"{share['step']:.2f}", f"{peak['step']:.2f}")
        decoder = f"{row['decoder_over_encoder']:.0%}"
        rows.append((row["network"], row["form"], *encoder, f"{peak['encoder']:.2f}", *step, decoder))
    return (
        f"patch {result['patch']}, blocks of {result['block']}, batch {result['batch']}, feature size"
        f" {result['feature_size']}, {result['precision']}, {result['turns']} rounds\n"
        f"{machine_line(result['machine'])}\n\n{markdown_table(rows)}"
    )


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96), help="size of the patch in voxels")
    parser.add_argument("--block", type=int, default=32, help="edge of a hidden block in voxels")
    parser.add_argument("--batch", type=int, default=1, help="patches of a batch")
    parser.add_argument("--feature-size", type=int, default=24, help="feature size of the Swin encoder")
    parser.add_argument(
        "--windows", type=int, nargs="*", default=(7, 4), help="window sizes of the Swin encoder; none skips it"
    )
    parser.add_argument("--no-vit", action="store_true", help="skip the ViT encoder")
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.5, 0.75), help="masking ratios")
    parser.add_argument(
        "--rounds", "--turns", dest="rounds", type=int, default=5, help="measured rounds, 2 or more (default: 5)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    cudnn_argument(parser)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()

    def work() -> int:
        networks: dict[str, NetworkSection] = {
            f"Swin, window {window}": SwinConfig(
                name="swin_unetr", feature_size=arguments.feature_size, window_size=window
            )
            for window in arguments.windows
        }
        if not arguments.no_vit:
            networks["ViT"] = UNETRConfig(name="unetr")
        result = {
            "patch": list(arguments.patch),
            "block": arguments.block,
            "batch": arguments.batch,
            "feature_size": arguments.feature_size,
            "precision": arguments.precision,
            "turns": arguments.rounds,
            "machine": machine_info(torch.device(arguments.device)),
            "rows": [row for name, model in networks.items() for row in measure(name, model, arguments)],
        }
        publish(result, markdown(result), arguments.json)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
