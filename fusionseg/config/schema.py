"""The schema of a run: every key of a configuration with its type, default and documentation.

The string under a field is its documentation; `fusionseg schema` prints all of it as JSON schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.config.data.cache import CacheConfig
from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.data.splits import ALL
from fusionseg.config.observation import LogConfig, ProfileConfig
from fusionseg.config.parts.metric import MetricPart, title_problems
from fusionseg.config.parts.open_section import OpenSection, open_section_of
from fusionseg.config.parts.sections import LossSection, NetworkSection, OptimizerSection, ScheduleSection
from fusionseg.config.parts.task import PRETRAINING, TaskInfo, TaskPart, task_info, without_default_task
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.registry import losses, networks, optimizers, schedules
from fusionseg.config.section import Positive, Section, SectionWithOptions
from fusionseg.config.training.distribution import DistributedConfig
from fusionseg.config.training.evaluation import EvaluateConfig
from fusionseg.config.training.fine_tuning import FinetuneConfig
from fusionseg.config.training.loop import TrainConfig

ModelConfig = Annotated[NetworkSection, OpenSection(networks, example="swin_fusion_od")]
_LOSS = OpenSection(losses, "dice_ce")
_OPTIMIZER = OpenSection(optimizers, "adamw")
_SCHEDULE = OpenSection(schedules, "cosine")


class PlateauConfig(Section):
    """Stop when the score of the validations (Dice; SSIM for a pre-training) no longer rises. The defaults are the rule
    of the thesis: less than 0.4 % in two intervals of 5000 steps."""

    window: Positive = 5000
    """Steps of an interval."""
    windows: Positive = 2
    """Number of consecutive intervals without a gain that ends the run."""
    min_gain: Annotated[float, Field(ge=0)] = 0.004
    """Smallest rise of the best score within an interval that counts as a gain."""


class StopConfig(SectionWithOptions):
    """Conditions that end a run before `train.steps`."""

    left_out: ClassVar[tuple[str, ...]] = ("at",)

    plateau: PlateauConfig | None = None
    """Stop when the validation no longer improves; null trains all steps."""
    at: Positive | None = None
    """Save and stop after this step, with the schedule of all `train.steps`. A start with a higher value, or with null,
    continues the run bit for bit as if it had not stopped."""


class ValidateConfig(Section):
    """Validation by sliding window on the cases of the fold."""

    every: Positive = 1000
    """Steps between validations. The last step validates too."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring windows, as a share of the window."""
    window_batch: Positive = 4
    """Windows in one forward pass."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weights of overlapping windows."""


class CheckpointConfig(SectionWithOptions):
    """Checkpoints of the whole training state."""

    left_out: ClassVar[tuple[str, ...]] = ("retry_s", "sharded")

    every: Positive = 500
    """Steps between checkpoints. The first step, the last step and a signal save one too."""
    keep: Positive = 3
    """Number of newest checkpoints that are kept, beside best.pt."""
    retry_s: Annotated[float, Field(ge=0)] = 1800.0
    """Seconds for which a training goes on while its disk takes no checkpoint or record: it is full, over quota,
    read-only or not reachable. The writes are tried again and again. After this time the run ends; 0 ends it at once.
    A run whose first checkpoint cannot be written ends at once too."""
    sharded: bool | Literal["auto"] = "auto"
    """With `distributed.parallel: fsdp` on several ranks: each rank writes its own parts of weights, averages and
    states of the optimizer, and a numbered checkpoint is a folder. `false` gathers whole tensors on rank 0, which
    writes one file. `auto` writes folders for a state of 4 GB or more. A run continues from both, on any number of
    ranks; best.pt is always one file."""


class RunConfig(SectionWithOptions):
    """One training run. The same configuration gives the same training on any number of devices."""

    model_config = ConfigDict(title="fusionseg run")
    left_out: ClassVar[tuple[str, ...]] = ("distributed", "evaluate", "metrics", "task")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run: the folder under `output`."""
    output: str = "runs"
    """Folder that holds the run folders."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial weights, the samples and the augmentation."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues a run whose folder holds checkpoints; `never` refuses such a folder."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device of the training; `auto` is the GPU if there is one."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    cache: CacheConfig = CacheConfig()
    model: ModelConfig
    """The network. Its `name` determines the other keys."""
    loss: Annotated[LossSection, _LOSS] = Field(default_factory=_LOSS.make_default)
    """The loss of a segmentation. A pre-training has a loss of its own, under `pretrain`."""
    task: TaskPart | None = None
    """The task: segmentation, pretraining, or one of your own by its dotted path package.module:Task. Null is a
    segmentation or, with a section `pretrain`, a pre-training."""
    pretrain: PretrainConfig | None = None
    """Pre-train the encoder of the network, or all of a residual-encoder U-Net (python -m fusionseg.pretrain); null
    trains a segmentation."""
    optim: Annotated[OptimizerSection, _OPTIMIZER] = Field(default_factory=_OPTIMIZER.make_default)
    """The optimizer."""
    schedule: Annotated[ScheduleSection, _SCHEDULE] = Field(default_factory=_SCHEDULE.make_default)
    """The learning rate as a function of the step."""
    train: TrainConfig = TrainConfig()
    distributed: DistributedConfig = DistributedConfig()
    stop: StopConfig = StopConfig()
    # `validate` is a method of pydantic's models; the key of the file keeps the name.
    validation: Annotated[ValidateConfig, Field(alias="validate")] = ValidateConfig()
    metrics: Annotated[tuple[MetricPart, ...], Field(strict=False)] = ()
    """Metrics of validations and evaluations in addition to the default ones: names (iou, nsd, hd95_mm), or dotted
    paths to your own; {name: ..., args: {...}} for one with arguments. An evaluation has all built-in ones anyway."""
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()
    init_from: str | None = None
    """A run folder or a checkpoint file whose weights the network starts from: a network's, or an encoder's alone."""
    init_from_seen: Literal["refuse", "mark"] = "refuse"
    """Treatment of `init_from` weights that were trained on validation cases of this run (compared by the content of
    the images): `refuse` does not start; `mark` starts and marks each result (split.json, `val` records,
    evaluation)."""
    init_min_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Smallest share of the parameters of the network, or of its encoder, that `init_from` must supply."""
    finetune: FinetuneConfig = FinetuneConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_task_has_no_key(cls, raw: Any) -> Any:
        return without_default_task(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        problems = self._task_problems()
        view = getattr(self.model, "view", None)
        if view is not None and self.data.orientation is None:
            problems.append(f"model.view: {view} slices need a known orientation; set data.orientation, such as RAS")
        problems += self._sampling_problems()
        if self.train.chooses_micro_batch:
            problems += self._choice_problems()
        elif self.train.global_batch % self.train.micro_batch_samples:
            divisors = [n for n in range(1, self.train.global_batch + 1) if self.train.global_batch % n == 0]
            problems.append(
                f"train.global_batch: expected a multiple of train.micro_batch {self.train.micro_batch}, got"
                f" {self.train.global_batch}; choose micro_batch from {divisors}"
            )
        problems += title_problems(self.metrics)
        problems += self.distributed.problems(self.optim.name, compiled=self.train.compile is not False)
        problems += self.schedule.problems(self.train.steps, self.optim.lr)
        if self.train.checkpoint_activations and not self.model.can_checkpoint:
            others = _families(lambda section: section.can_checkpoint)
            problems.append(
                f"train.checkpoint_activations: {self.model.name} does not have it ({others} have it); set it to false"
                " (a smaller data.patch or train.micro_batch saves memory too)"
            )
        if self.profile.stages and self.train.compile is not False:
            problems.append(
                "profile.stages: the parts of a compiled network have no ranges of their own; set train.compile=false,"
                " or profile.stages=false"
            )
        problems += self.train.graph_problems(stages=self.profile.stages)
        problems += self.train.determinism_problems()
        plateau = self.stop.plateau
        if plateau is not None and self.data.fold == ALL:
            problems.append(
                "stop.plateau: needs validations, and data.fold=all validates nothing; set stop.plateau=null"
            )
        elif plateau is not None and self.validation.every > plateau.window:
            problems.append(
                f"stop.plateau.window: expected at least validate.every {self.validation.every} steps, got"
                f" {plateau.window}; raise it, or validate more often"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _choice_problems(self) -> list[str]:
        """List the settings whose results depend on `train.micro_batch`, which a start is to choose, with the fixes."""
        found = {
            "model.norm": getattr(self.model, "norm", None) == "batch",
            "loss.batch_dice": getattr(self.loss, "batch_dice", False),
            "cache.placement": self.cache.placement == "sharded",
        }
        values = self.to_dict()
        number = self.train.micro_batch
        remedy = (
            "train.micro_batch to a number" if number == "auto" else f"train.micro_batch_found=null to keep {number}"
        )
        return [
            f"train.micro_batch: auto would give another training on another device, because"
            f" {path}={str(values[path.partition('.')[0]][path.partition('.')[2]]).lower()} depends on micro_batch; set"
            f" {remedy}, or change {path}"
            for path, depends in found.items()
            if depends
        ]

    def _sampling_problems(self) -> list[str]:
        """List the settings of sampling and flips that do not fit the data or the task, with the fixes."""
        problems = []
        sampling = self.data.sampling
        if self.augment.mirror_pairs and self.data.orientation is None:
            problems.append(
                "augment.mirror_pairs: needs a known left-right axis; set data.orientation, such as RAS, or remove it"
            )
        if self.augment.mirror_pairs and not self.task_info.needs_labels:
            problems.append("augment.mirror_pairs: exchanges labels, and this task has none; remove it")
        if sampling is None:
            return problems
        if not self.task_info.needs_labels:
            problems += [
                f"data.sampling.{key}: needs labels, and this task has none; remove it"
                for key in ("class_weights", "case_weights")
                if getattr(sampling, key) is not None
            ]
        elif sampling.class_weights is not None and self.data.foreground == 0:
            problems.append(
                "data.sampling.class_weights: has no effect with data.foreground 0; raise data.foreground, or remove it"
            )
        return problems

    def _task_problems(self) -> list[str]:
        """List the settings that do not fit the task, with the fixes."""
        model, patch = self.model, self.data.patch
        if self.task_info.needs_target != (self.data.target is not None):
            name = self.task_info.name
            return [
                f"data.target: is missing, and the task {name} learns it; name the column (or the key of the entries)"
                " that has it"
                if self.task_info.needs_target
                else f"data.target: has no effect, because the task {name} does not learn it; remove it"
            ]
        if self.task is not None and self.pretrain is not None:
            return [f"pretrain: is for the task {PRETRAINING}, and `task` is {self.task.name}; remove one of them"]
        if self.pretrain is None:
            problems = [problem] if (problem := model.patch_problem(patch)) else []
            if self.data.also and (self.task_info.needs_labels or self.task_info.needs_target):
                problems.append("data.also: further data sets are for pre-training only; remove it, or add `pretrain:`")
            others = _families(lambda section: section.encoder is not None)
            return problems + self.finetune.problems(model, self.init_from, self.train.steps, others)
        problems = [problem] if (problem := model.encoder_patch_problem(patch)) else []
        problems += self.pretrain.problems(
            model.name,
            patch,
            model.pretrain_methods,
            own_decoder=model.pretrains_decoder,
            others=_families(lambda section: bool(section.pretrain_methods)),
        )
        if self.finetune != FinetuneConfig():
            problems.append("finetune: is for a segmentation, and this run is a pre-training; remove it")
        return problems

    @property
    def start_weights(self) -> str | None:
        """The weights that the network starts from: `init_from`, unless `finetune.from_scratch` turns it off."""
        return None if self.finetune.from_scratch else self.init_from

    @property
    def task_info(self) -> TaskInfo:
        """The description of the task that this run trains for."""
        return task_info(pretrain=self.pretrain, task=self.task)

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the keys of the file. Loading them gives this configuration again."""
        return self.model_dump(mode="json", by_alias=True)


def _families(have: Callable[[type[NetworkSection]], bool]) -> str:
    """The first name of each family of networks that has something, for a message."""
    first = {section: name for name, section in reversed(networks.built_in().items()) if have(section)}
    return ", ".join(sorted(first.values()))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors: the keys of a run, and `extends`.

    No key is required, since a file may extend another one.
    """
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
    string = {"type": "string"}
    run["properties"]["extends"] = {
        "anyOf": [string, {"type": "array", "items": string}],
        "description": "A file, or a list of files, that this one is laid over: relative to this file, or the name of a"
        " shipped configuration.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions, **run}
