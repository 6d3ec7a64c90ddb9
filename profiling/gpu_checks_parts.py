"""Parts of profiling/gpu_checks.py: the commands of each, in order of worth."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 60
LONGEST_S = 8 * MINUTES
INTENSITY = "data.intensity={clip: [-200, 500]}"


@dataclass(frozen=True)
class Setting:
    """Choices that the commands of all parts share.

    Args:
        out: folder of the checks.
        data: folder of the data set.
        synthetic: the data set was made by `fusionseg synth`.
        device: "cuda" or "cpu".
        has_bf16: the device computes in bf16.
        tiny: sizes that only test the script.
        rounds: measured rounds of the benchmarks.
    """

    out: Path
    data: Path
    synthetic: bool
    device: str
    has_bf16: bool
    tiny: bool
    rounds: int

    @property
    def half(self) -> str:
        """The 16-bit precision of the device."""
        return "bf16" if self.has_bf16 else "fp16"

    @property
    def overrides(self) -> list[str]:
        """Settings of every configuration."""
        return [f"device={self.device}", *([INTENSITY] if self.synthetic else [])]

    def folder(self, part: str) -> Path:
        """Folder of the results of a part."""
        return self.out / "parts" / part


Command = list[str]


@dataclass(frozen=True)
class Part:
    """One part of the checks.

    Args:
        name: for the command line, the status and the folder of its results.
        about: one line for the list and the table.
        commands: makes the command lines; what they print is the table of the part.
        limit_s: the part is ended after this time.
        expected_s: time on a current GPU; with --minutes a part begins only if this time is left.
        precision: precision that the device must have; "" if any will do.
        data: the commands read the data set.
        on_cpu: the part can run without a GPU.
        package: module that the part needs; without it the part is skipped.
        statuses: exit statuses of success of the commands.
        problem: called after the commands; the reason why the part has failed, or "".
    """

    name: str
    about: str
    commands: Callable[[Setting], list[Command]]
    limit_s: int = LONGEST_S
    expected_s: int = 2 * MINUTES
    precision: str = ""
    data: bool = True
    on_cpu: bool = True
    package: str = ""
    statuses: tuple[int, ...] = (0,)
    problem: Callable[[Setting], str] = lambda setting: ""


def program(name: str, *words: object) -> Command:
    """Command line of a program of profiling/."""
    return [sys.executable, str(ROOT / "profiling" / name), *map(str, words)]


def module(name: str, *words: object) -> Command:
    """Command line of a module."""
    return [sys.executable, "-m", name, *map(str, words)]


def doctor(setting: Setting) -> list[Command]:
    """The page about the machine."""
    result = setting.folder("doctor") / "doctor.json"
    return [module("fusionseg", "doctor", "--folder", setting.out, "--json", result)]


def doctor_problem(setting: Setting) -> str:
    """The bad findings of the doctor, but those about SLURM, which these checks do not use."""
    result = setting.folder("doctor") / "doctor.json"
    if not result.exists():  # a traceback has the status of a bad finding
        return f"it has no result; see {result.parent / 'messages.log'}"
    findings = json.loads(result.read_text(encoding="utf-8"))
    bad = [one for one in findings if one["verdict"] == "BAD" and one["name"] != "SLURM"]
    return "; ".join(f"{one['name']}: {one['text']}" for one in bad)


def resume(setting: Setting) -> list[Command]:
    """A training that is killed and resumed, beside one that is not; its evaluation."""
    folder = setting.folder("resume")
    steps = 30 if setting.tiny else 300
    small = _small_network(setting)
    return [
        program(
            "check_resume.py", folder / "runs", "--data", setting.data, "--steps", steps,
            "--json", folder / "resume.json", *setting.overrides, *small,
        ),
        module("fusionseg", "status", folder / "runs" / "resumed"),
        module("fusionseg", "evaluate", folder / "runs" / "resumed", "--device", setting.device),
    ]  # fmt: skip


def profile(setting: Setting) -> list[Command]:
    """A training under the torch profiler and, on a GPU, with the history of its memory; the report."""
    folder = setting.folder("profile")
    first, steps = (3, 6) if setting.tiny else (40, 60)
    train = module(
        "fusionseg.train", "--config", ROOT / "configs" / "demo.yaml", f"data.root={setting.data}",
        f"output={folder / 'runs'}", f"train.steps={steps}", "schedule.warmup=2", f"validate.every={steps}",
        *setting.overrides, *_small_network(setting), f"profile.steps=[{first}, {first + 3}]",
    )  # fmt: skip
    commands = [[*train, "name=profiled"], program("report.py", folder / "runs" / "profiled")]
    if setting.device == "cuda":
        commands.append([*train, "name=memory", "profile.with=memory"])
    return commands


def roofline(setting: Setting) -> list[Command]:
    """The rooflines of a small U-Net, of the small Swin Fusion network, and of nnU-Net's network at full size."""
    folder = setting.folder("roofline")
    steps = 1 if setting.tiny else 10
    edge = 32 if setting.tiny else 128
    large = ["model={name: nnunet_plain}", f"data.patch=[{edge}, {edge}, {edge}]"]
    if setting.tiny:
        large[0] = "model={name: nnunet_plain, filters: [8, 16, 32]}"
    chosen = [("hippocampus_unet", "hippocampus_unet", _tiny_patch(setting))]
    if not setting.tiny:
        chosen.append(("hippocampus_fusion_od", "hippocampus_fusion_od", []))
    chosen.append(("nnunet_plain", "hippocampus_unet", large))
    return [
        program(
            "roofline.py", "--config", ROOT / "configs" / f"{config}.yaml", "--data", setting.data, "--steps", steps,
            "--json", folder / f"{name}.json", "--figure", folder / f"{name}.png", "--cudnn-benchmark",
            *setting.overrides, f"train.precision={setting.half}", *overrides,
        )
        for name, config, overrides in chosen
    ]  # fmt: skip


def steps(compiled: bool) -> Callable[[Setting], list[Command]]:
    """The step and the epoch beside MONAI's fast recipe, in the 16-bit precision of the device."""
    name = "step_compiled" if compiled else "step"

    def commands(setting: Setting) -> list[Command]:
        recipes = ["monai_fast", "monai_fast_best"] if setting.device == "cuda" else ["monai_fast"]
        return [_benchmark(setting, name, ["step", "epoch"], recipes, precision=setting.half, compiled=compiled)]

    return commands


def step_layout(setting: Setting) -> list[Command]:
    """The step with contiguous maps; in the part `step` the maps of the same network are channels-last."""
    where = ["train.channels_last=false"]
    return [_benchmark(setting, "step_layout", ["step"], ["monai_fast"], precision=setting.half, settings=where)]


def nnunet(setting: Setting) -> list[Command]:
    """The step with its data beside nnU-Net's own trainer."""
    size = ["--memory", 2, "--batch", 2, "--steps", 1] if setting.tiny else []
    return [
        program(
            "benchmark_nnunet.py", "--data", setting.data, "--device", setting.device, "--rounds", setting.rounds,
            "--json", setting.folder("nnunet") / "nnunet.json", "--cudnn-benchmark", *size,
            *([INTENSITY] if setting.synthetic else []),
        )
    ]  # fmt: skip


def cases(setting: Setting) -> list[Command]:
    """The other cases of the benchmark."""
    chosen = ["data", "ranges"] if setting.tiny else ["data", "validation", "checkpoint", "start", "ranges"]
    return [_benchmark(setting, "cases", chosen, ["monai_fast"], precision=setting.half)]


def swin(compiled: bool) -> Callable[[Setting], list[Command]]:
    """The Swin networks beside MONAI's, in the 16-bit precision of the device; not compiled, also with the reference of
    their backward passes."""
    name = "swin_compiled" if compiled else "swin"
    return lambda setting: [_swin(setting, name, setting.half, compiled=compiled)]


def pretraining(setting: Setting) -> list[Command]:
    """The two methods of pre-training."""
    size = ["--patch", "64", "64", "64", "--block", "32", "--feature-size", "12", "--windows", "4", "--no-vit"]
    precision = "bf16" if setting.has_bf16 else "fp32"
    return [
        program(
            "benchmark_mae.py", "--batch", 1 if setting.tiny else 2, "--rounds", setting.rounds, "--device",
            setting.device, "--precision", precision, "--json", setting.folder("pretraining") / "pretraining.json",
            "--cudnn-benchmark", *(size if setting.tiny else []),
        )
    ]  # fmt: skip


def matrix(name: str, precision: str, cache: str, *, compiled: bool) -> Callable[[Setting], list[Command]]:
    """The step and the epoch in one combination of precision, place of the cache, and compilation."""
    return lambda setting: [
        _benchmark(
            setting, name, ["step", "epoch"], ["monai_fast"], precision=precision, cache=cache, compiled=compiled
        )
    ]


def _small_network(setting: Setting) -> list[str]:
    """Settings of demo.yaml for the CPU."""
    small = "model={name: monai_unet, channels: [8, 16]}"
    return [small, "data.patch=[32, 32, 32]", "train.micro_batch=2"] if setting.tiny else []


def _tiny_patch(setting: Setting) -> list[str]:
    return ["data.patch=[32, 32, 32]", "model.channels=[8, 16, 32]"] if setting.tiny else []


def _benchmark(
    setting: Setting, part: str, chosen: list[str], recipes: list[str], *, precision: str, cache: str = "",
    compiled: bool = False, settings: Sequence[str] = (),
) -> Command:  # fmt: skip
    where = [f"cache.device={cache}"] if cache else []
    return program(
        "benchmark.py", "--data", setting.data, "--networks", "unet", "--cases", *chosen, "--recipes", *recipes,
        "--rounds", setting.rounds, "--json", setting.folder(part) / f"{part}.json", "--cudnn-benchmark",
        *setting.overrides, f"train.precision={precision}", f"train.compile={str(compiled).lower()}", *where,
        *settings, *_tiny_patch(setting),
    )  # fmt: skip


def _swin(setting: Setting, part: str, precision: str, *, compiled: bool) -> Command:
    networks = ["swin_unetr"] if setting.tiny else ["swin_unetr", "swin_fusion_od"]
    implementations = ["fused"] if compiled else ["fused", "reference"]  # to compile more takes longer than the limit
    size = ["--feature-size", "12", "--patch", "64", "--no-memory"] if setting.tiny else []
    return program(
        "benchmark_swin.py", "--networks", *networks, "--implementation", *implementations, "--precision", precision,
        "--compile", "on" if compiled else "off", "--device", setting.device, "--rounds", setting.rounds,
        "--json", setting.folder(part) / f"{part}.json", "--cudnn-benchmark", *size,
    )  # fmt: skip


def _swin_matrix(name: str, precision: str) -> Callable[[Setting], list[Command]]:
    return lambda setting: [_swin(setting, name, precision, compiled=False)]


def _matrix() -> list[Part]:
    """Every precision, with and without compilation, cache on the device and on the host, without what `step` has."""
    parts = []
    for precision in ("fp32", "fp16", "bf16"):
        for cache, place in (("accelerator", "device"), ("host", "host")):
            for compiled in (False, True):
                if (precision, place) == ("bf16", "device"):
                    continue
                name = f"matrix_{precision}_{place}{'_compiled' if compiled else ''}"
                about = f"step and epoch: {precision}, cache on the {place}, {'compiled' if compiled else 'eager'}"
                commands = matrix(name, precision, cache, compiled=compiled)
                parts.append(Part(name, about, commands, expected_s=90, precision=precision, on_cpu=False))
    for precision in ("fp32", "fp16"):
        name = f"matrix_{precision}_swin"
        about = f"Swin UNETR beside MONAI's: {precision}"
        parts.append(Part(name, about, _swin_matrix(name, precision), data=False, on_cpu=False))
    return parts


PARTS: tuple[Part, ...] = (
    Part("doctor", "fusionseg doctor", doctor, 2 * MINUTES, 20, data=False, statuses=(0, 1), problem=doctor_problem),
    Part("resume", "a training that is killed and resumed, beside one that is not", resume),
    Part("profile", "profiler and report", profile),
    Part("roofline", "rooflines of a U-Net, Swin Fusion and nnU-Net's network", roofline),
    Part("step", "step and epoch in 16 bits beside MONAI's fast recipe", steps(False)),
    Part("step_compiled", "step and epoch, compiled", steps(True), expected_s=150, on_cpu=False),
    Part("step_layout", "the step with maps in the contiguous format", step_layout, expected_s=60),
    Part(
        "nnunet",
        "the step with its data beside nnU-Net's own trainer",
        nnunet,
        expected_s=5 * MINUTES,
        package="nnunetv2",
    ),
    Part(
        "swin",
        "Swin networks, with both values of model.implementation, beside MONAI's in 16 bits",
        swin(False),
        expected_s=3 * MINUTES,
        data=False,
    ),
    Part("swin_compiled", "the Swin networks, compiled", swin(True), expected_s=4 * MINUTES, data=False, on_cpu=False),
    Part("pretraining", "the two methods of pre-training", pretraining, data=False),
    Part("cases", "data, validation, checkpoint, start, ranges", cases),
    *_matrix(),
)
