"""The schema of a run: every key of a configuration, its type, its default and what it means.

The string under a field is its documentation; `fusionseg schema` prints all of it as JSON schema.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

from fusionseg.config.data_sections import AugmentConfig, CacheConfig, DataConfig
from fusionseg.config.observation import LogConfig, ProfileConfig
from fusionseg.config.parts.metric import MetricPart, title_problems
from fusionseg.config.parts.open_section import OpenSection, open_section_of
from fusionseg.config.parts.sections import LossSection, NetworkSection, OptimizerSection, ScheduleSection
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.registry import losses, networks, optimizers, schedules
from fusionseg.config.section import Positive, Section, SectionWithOptions

ModelConfig = Annotated[NetworkSection, OpenSection(networks, example="swin_fusion_od")]
_LOSS = OpenSection(losses, "dice_ce")
_OPTIMIZER = OpenSection(optimizers, "adamw")
_SCHEDULE = OpenSection(schedules, "cosine")


class TrainConfig(Section):
    """The training loop."""

    steps: Positive = 50000
    """Optimizer steps."""
    global_batch: Positive = 2
    """Samples per optimizer step over all ranks; the accumulation follows from it."""
    micro_batch: Positive = 1
    """Samples in memory at once on each rank."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the device computes in it, else fp16 with a loss scaler (GPU) or fp32 (CPU)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, more time (Swin networks)."""
    channels_last: bool = False
    """Keep tensors in channels-last layout: convolutions are often faster so."""
    clip_grad: Annotated[float, Field(gt=0)] | None = 1.0
    """Highest norm of the gradient; null does not clip."""
    max_skipped: Positive = 10
    """So many steps in a row with a non-finite loss or gradient end the run."""
    threads: Positive | None = None
    """CPU threads of each process; null is this job's CPUs dealt over its processes on the node."""


class PlateauConfig(Section):
    """Stop when validation no longer gains (the thesis: under 0.4 % in two windows of 5000 steps)."""

    window: Positive = 5000
    """Steps of a window."""
    windows: Positive = 2
    """Successive windows without gain that end the run."""
    min_gain: Annotated[float, Field(ge=0)] = 0.004
    """Dice that the best so far must rise by within a window to count as a gain."""


class StopConfig(Section):
    """Ends before `train.steps`."""

    plateau: PlateauConfig | None = None
    """Stop when validation no longer gains; null trains all steps."""


class ValidateConfig(Section):
    """Validation by sliding window on the fold's cases."""

    every: Positive = 1000
    """Steps between validations; the last step validates too."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring windows, as a share of the window."""
    window_batch: Positive = 4
    """Windows in one forward pass."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """How overlapping windows are weighted."""


class CheckpointConfig(Section):
    """Checkpoints of the whole training state."""

    every: Positive = 500
    """Steps between checkpoints; the first step, the last one and a signal save too."""
    keep: Positive = 3
    """Newest checkpoints that stay, beside best.pt."""


class FinetuneConfig(Section):
    """How a trained encoder, of `init_from`, is treated: for the networks that have one (Swin, UNETR)."""

    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The encoder's layers learn the more slowly the deeper they lie (Clark et al., 2020; Bao et al., 2022): layer l
    of L, the patch embedding being layer 0 and each block one, at lr * layer_decay^(L - l), the rest of the network at
    lr."""
    freeze: Literal["none", "encoder"] = "none"
    """What does not learn, nor decay."""
    freeze_steps: Positive | None = None
    """For how many steps from the first; the learning rate's schedule goes on meanwhile. Null is the whole run, whose
    backward pass then ends before the encoder."""

    @model_validator(mode="after")
    def _something_to_freeze(self) -> FinetuneConfig:
        if self.freeze == "none" and self.freeze_steps is not None:
            raise ValueError("freeze_steps: nothing is frozen: remove it, or set freeze: encoder")
        if self.whole_run and self.layer_decay != 1:
            raise ValueError("layer_decay: the encoder is frozen for the whole run: remove it, or set freeze_steps")
        return self

    @property
    def whole_run(self) -> bool:
        """Whether the encoder never learns."""
        return self.freeze == "encoder" and self.freeze_steps is None

    def problems(self, encoder: str | None, name: str, init_from: str | None, steps: int) -> list[str]:
        """What keeps this from being done to a network, with the fixes.

        Args:
            encoder: the encoder's attribute in the network; None if it has none.
            name: of the network.
            steps: of the run.
        """
        if encoder is None and (self.layer_decay != 1 or self.freeze != "none"):
            return [
                f"finetune: {name} has no encoder that is apart from the rest: remove it, or choose a swin_* network or"
                " unetr as model.name"
            ]
        problems = []
        if self.freeze != "none" and init_from is None:
            problems.append(
                "finetune.freeze: without init_from the encoder would keep its random weights: set init_from, or"
                " freeze: none"
            )
        if self.freeze_steps is not None and self.freeze_steps >= steps:
            problems.append(
                f"finetune.freeze_steps: {self.freeze_steps} do not end before train.steps {steps}: lower it, or set it"
                " to null for the whole run"
            )
        return problems


class RunConfig(SectionWithOptions):
    """One training run. The same configuration means the same training on any number of devices."""

    model_config = ConfigDict(title="fusionseg run")
    left_out: ClassVar[tuple[str, ...]] = ("metrics",)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run: the folder under `output`."""
    output: str = "runs"
    """Folder that holds the run folders."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initial weights, samples and augmentation."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues a run whose folder holds checkpoints; `never` refuses such a folder."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device to train on; `auto` takes the GPU where there is one."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    cache: CacheConfig = CacheConfig()
    model: ModelConfig
    """The network; `name` chooses it and decides which other keys there are."""
    loss: Annotated[LossSection, _LOSS] = Field(default_factory=_LOSS.make_default)
    """The loss of a segmentation; a pre-training has its own, under `pretrain`."""
    pretrain: PretrainConfig | None = None
    """Makes this run a pre-training (python -m fusionseg.pretrain) of the network's encoder."""
    optim: Annotated[OptimizerSection, _OPTIMIZER] = Field(default_factory=_OPTIMIZER.make_default)
    """The optimizer."""
    schedule: Annotated[ScheduleSection, _SCHEDULE] = Field(default_factory=_SCHEDULE.make_default)
    """The learning rate as a function of the step."""
    train: TrainConfig = TrainConfig()
    stop: StopConfig = StopConfig()
    # `validate` is a method of pydantic's models; the key in the file keeps the plain word.
    validation: Annotated[ValidateConfig, Field(alias="validate")] = ValidateConfig()
    metrics: Annotated[tuple[MetricPart, ...], Field(strict=False)] = ()
    """Metrics of validations and evaluations beside the default ones: names (iou, volume_ml_error, hd95_mm), or dotted
    paths to your own; {name: ..., args: {...}} for one with arguments."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()
    init_from: str | None = None
    """A run folder or a checkpoint file whose weights the network starts from: a network's, or an encoder's alone."""
    init_from_seen: Literal["refuse", "mark"] = "refuse"
    """The treatment of `init_from` weights that were trained on validation cases of this run (told by the images'
    content): `refuse` to start; `mark` goes on and marks every result (split.json, the `val` records, evaluation)."""
    init_min_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share that `init_from` must supply, of the network's parameters or of its encoder's."""
    finetune: FinetuneConfig = FinetuneConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        problems = []
        fits = self.model.patch_problem if self.pretrain is None else self.model.encoder_patch_problem
        if problem := fits(self.data.patch):
            problems.append(problem)
        view = getattr(self.model, "view", None)
        if view is not None and self.data.orientation is None:
            problems.append(
                f"model.view: which slices are {view} is unknown without data.orientation: set it, such as RAS"
            )
        if self.pretrain is not None:
            problems += self.pretrain.problems(self.model.encoder, self.model.name, self.data.patch)
        elif self.data.also:
            problems.append("data.also: further data sets are for pre-training only: remove it, or add `pretrain:`")
        if self.pretrain is not None and self.finetune != FinetuneConfig():
            problems.append("finetune: is for a segmentation, and this run is a pre-training: remove it")
        else:
            problems += self.finetune.problems(self.model.encoder, self.model.name, self.init_from, self.train.steps)
        if self.train.global_batch % self.train.micro_batch:
            divisors = [n for n in range(1, self.train.global_batch + 1) if self.train.global_batch % n == 0]
            problems.append(
                f"train.global_batch: {self.train.global_batch} is not a multiple of train.micro_batch"
                f" {self.train.micro_batch}: choose micro_batch from {divisors}"
            )
        problems += title_problems(self.metrics)
        problems += self.schedule.problems(self.train.steps, self.optim.lr)
        if self.train.checkpoint_activations and not self.model.can_checkpoint:
            problems.append(
                f"train.checkpoint_activations: is for the Swin networks, and {self.model.name} has none: set it to"
                " false (a smaller data.patch or train.micro_batch saves memory too)"
            )
        if self.profile.stages and self.train.compile:
            problems.append(
                "profile.stages: the parts of a compiled network have no ranges of their own: set train.compile=false,"
                " or profile.stages=false"
            )
        plateau = self.stop.plateau
        if plateau is not None and self.validation.every > plateau.window:
            problems.append(
                f"stop.plateau.window: {plateau.window} steps pass without a validation (validate.every"
                f" {self.validation.every}): raise it, or validate more often"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the keys of the file; loading them gives this configuration again."""
        return self.model_dump(mode="json", by_alias=True)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors: that of a run, and `extends`. Nothing is required, since a
    file may extend another one."""
    opened = {key: entry for key, field in RunConfig.model_fields.items() if (entry := open_section_of(field))}
    kinds: list[type[Section]] = [RunConfig, *(section for entry in opened.values() for section in entry.sections())]
    references, schema = models_json_schema([(kind, "validation") for kind in kinds], by_alias=True)
    definitions = schema["$defs"]
    run = definitions.pop("RunConfig")
    run.pop("required", None)
    for key, entry in opened.items():
        run["properties"][key]["anyOf"] = [references[section, "validation"] for section in entry.sections()]
        if entry.default is not None:
            run["properties"][key]["default"] = entry.make_default().model_dump(mode="json", by_alias=True)
    names = {"type": "string"}
    run["properties"]["extends"] = {
        "anyOf": [names, {"type": "array", "items": names}],
        "description": "A file, or a list of files, that this one is laid over: relative to this file, or the name of a"
        " shipped configuration.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions, **run}
