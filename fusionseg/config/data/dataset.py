"""The section `data`: the data set, its preparation, and the shape and position of a sample."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from fusionseg.config.data.labels import (
    LABEL_KEYS,
    AnnotatedCases,
    Groups,
    IgnoredLabel,
    LabelNames,
    LabelSettings,
    Outputs,
)
from fusionseg.config.data.parts import LayoutPart, ReaderPart, TransformPart
from fusionseg.config.data.preprocessing import CropForegroundConfig, IntensityConfig
from fusionseg.config.data.sampling import SamplingConfig
from fusionseg.config.data.splits import SPLIT_KEYS, Fold, Group, Text, split_problems
from fusionseg.config.section import FloatTriple, Positive, Probability, SectionWithOptions, Triple

Orientation = Annotated[str, Field(pattern="^[RL][AP][SI]$|^$")]


class SourceConfig(SectionWithOptions):
    """A further data set to pre-train on. A key that is not given is as in `data`.

    Its labels are those that it states itself; of the keys about labels, only a list `data.labels` holds for it too.
    """

    left_out: ClassVar[tuple[str, ...]] = ("base_dir", "reader", "series", "transforms", "splits", "table", "group")

    root: str
    """Folder of the data set (MSD or nnU-Net raw layout, or a folder for each case), or a MONAI datalist JSON."""
    base_dir: str | None = None
    """Folder at which the relative paths of a datalist start; null is the folder of the list."""
    layout: LayoutPart = "auto"
    """Layout of the folder: auto, msd, nnunet, datalist or folders; `auto` looks at its files. Or a layout of your own,
    by its dotted path (my_layout:cases), or {name: ..., args: {...}}."""
    reader: ReaderPart | None = None
    """A reader of your own for image files; null is that of `data`."""
    series: str | None = None
    """The DICOM series to read, as `data.series`; null is that of `data`."""
    spacing: FloatTriple | None
    """Voxel size in mm that volumes are resampled to; null keeps each volume's own."""
    orientation: Orientation | None
    """Axes of the prepared volumes; null keeps each volume's own."""
    intensity: IntensityConfig
    """Normalisation of the raw intensities: CT and MRI need their own."""
    crop_foreground: CropForegroundConfig | None
    """Crop to the voxels above a threshold."""
    transforms: Annotated[tuple[TransformPart, ...], Field(strict=False)] | None = None
    """Deterministic transforms before the normalisation; null is those of `data`."""
    prepared: str | None = None
    """Folder of the prepared cases; null is one under `<output>/prepared`, by data set and settings."""
    splits: Text = "auto"
    """The folds of this data set, as `data.splits`."""
    table: Text | None = None
    """The table of this data set, as `data.table`."""
    group: Group | None = None
    """The groups of this data set, as `data.group`."""


INHERITED = ("spacing", "orientation", "intensity", "crop_foreground")
"""Keys of a further data set that are those of `data` where it does not give them."""


class DataConfig(SectionWithOptions):
    """The data set, its preparation, and the shape and position of a sample."""

    left_out: ClassVar[tuple[str, ...]] = (
        *("base_dir", "reader", "series", "transforms", "sampling", *LABEL_KEYS, *SPLIT_KEYS),
        *("missing_channels", "worker_memory_gb"),
    )

    root: str | None = None
    """Folder of the data set (MSD or nnU-Net raw layout, or a folder for each case), or a MONAI datalist JSON."""
    base_dir: str | None = None
    """Folder at which the relative paths of a datalist start; null is `base_dir` of the list, or else the folder of the
    list."""
    layout: LayoutPart = "auto"
    """Layout of the folder: auto, msd, nnunet, datalist or folders; `auto` looks at its files. Or a layout of your own,
    by its dotted path (my_layout:cases), or {name: ..., args: {...}}."""
    reader: ReaderPart | None = None
    """A reader of your own for image files: a dotted path (my_reader:NpzReader), or {name: ..., args: {...}}. Files
    with other suffixes are read as usual."""
    series: str | None = None
    """The DICOM series to read, where folders hold several: its description, where `*` and `?` stand for any letters,
    or the end of its UID; alternatives are separated by `|`."""
    also: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    """Further data sets, for pre-training: each with its own root and, where they differ, its own spacing,
    orientation, intensity and crop_foreground."""
    labels: LabelNames | None = None
    """Names of the values in the label files, where the data set does not say them: a list for 0, 1, ..., or each name
    with its value, as in nnU-Net's dataset.json ({background: 0, spleen: 1, liver: 5, ignore: 7}; a list of values is a
    region)."""
    classes: Groups | None = None
    """Classes of the training, by names or values of the labels: a list selects ([liver, spleen]), a mapping merges too
    ({kidneys: [kidney_left, kidney_right], lungs: [10, 11]}). All other labels become background, and regions that the
    data set states are dropped."""
    regions: Groups | None = None
    """Overlapping outputs, each with the classes or values that belong to it:
    {whole: [1, 2, 3, 4], core: [1, 3, 4], enhancing: [4]}."""
    regions_class_order: Annotated[tuple[int, ...], Field(strict=False)] | None = None
    """For each of the regions, the value that is painted in masks where the region is predicted; later ones are painted
    over earlier ones. Null derives it where each region lies in the one before it."""
    ignore: IgnoredLabel | None = None
    """Value (or name) of voxels without annotation: they have no part in losses and metrics."""
    annotated: AnnotatedCases | None = None
    """The classes that cases annotate, where they do not annotate all, by patterns of case names:
    {'liver_*': [liver], 'case_001': [liver, spleen]}. A datalist may say so in each entry ("annotated")."""
    outputs: Outputs = "auto"
    """`softmax`: one of the classes for each voxel. `sigmoid`: a decision of its own for each class or region. `auto`:
    sigmoid where there are regions or cases that annotate only some classes, otherwise softmax."""
    fold: Fold = 0
    """The fold of the validation cases. The cases of all other folds are training cases. `all` trains on every labelled
    case and validates none. The name of a group (`group`) validates on this group and trains on the others."""
    folds: Positive = 5
    """Number of folds. The labelled training cases are divided among them by name and seed, unless the data set states
    its folds. 1 trains on all of them and validates on the same cases: to overfit a case, or to use every case. The
    results are then marked, because they say nothing about other cases."""
    fold_seed: int = 0
    """Seed of the division into folds. It is not `seed`, so that runs with several seeds have the same split."""
    train_cases: Positive | None = None
    """Number of training cases that are used, the first of the fold (learning curves, few labels); null uses all."""
    splits: Text = "auto"
    """A file of folds as nnU-Net's splits_final.json: a list of {train: [names], val: [names]}. A relative path is
    looked up in the folder of the data set, then in the current one. `auto` uses splits_final.json in the folder of the
    data set if there is one and no key asks for other folds; `none` uses no file."""
    table: Text | None = None
    """A table of the cases (CSV, TSV): a column `case` with their names, and columns that `group`, `stratify`,
    `weight` and `target` name. A relative path is looked up as that of `splits`."""
    group: Group | None = None
    """Cases of one group (a patient, a site) are never on both sides. A column of `table`, a key of the entries of the
    data set's JSON, or a regular expression on the names of the cases with one group in parentheses, such as
    ^(patient\\d+)_."""
    stratify: Text | None = None
    """Draw folds with the same share of each value of this column of `table` or key of the entries. `classes` balances
    the classes that occur in the labels."""
    weight: Text | None = None
    """A column of `table`, or a key of the entries, with the weight of each case in the sampling: a number above 0."""
    target: Text | None = None
    """A column of `table`, or a key of the entries, with the value of each case that a task of your own learns, such as
    a class. A segmentation learns from label files instead."""
    spacing: FloatTriple | None = None
    """Voxel size in mm that volumes are resampled to; null keeps each volume's own."""
    orientation: Orientation | None = "RAS"
    """Axes of the prepared volumes: R or L, A or P, S or I; null keeps each volume's own."""
    intensity: IntensityConfig = IntensityConfig()
    crop_foreground: CropForegroundConfig | None = None
    """Crop to the voxels above a threshold before training. Predictions have the shape of the full volume."""
    transforms: Annotated[tuple[TransformPart, ...], Field(strict=False)] = ()
    """Deterministic transforms by dotted path: MONAI's dictionary transforms, or functions of your own from dictionary
    to dictionary. They change the volume after reorientation, resampling and cropping, before `intensity` normalises
    it."""
    dtype: Literal["float16", "float32"] = "float16"
    """Data type of the prepared images on disk."""
    prepared: str | None = None
    """Folder of the prepared cases; null is one under `<output>/prepared`, by data set and settings."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that prepare cases; null is one for each CPU that this job may use."""
    worker_memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Most memory of a process that prepares cases, in GB (10^9 bytes). A case that needs more is refused. With null,
    the workers share the memory that this job may use, and a case that needs more than its share is prepared after the
    others, by fewer workers."""
    missing_channels: Literal["refuse", "zero"] = "refuse"
    """A case that lacks the file of a channel: `refuse` makes it an error; `zero` accepts it, and the prepared channel
    is 0 in every voxel."""
    skip_broken: bool = False
    """Train without the cases that cannot be prepared, instead of refusing to start."""
    patch: Triple = (96, 96, 96)
    """Voxels of a training patch."""
    samples_per_volume: Positive = 2
    """Consecutive samples that are taken from one volume."""
    foreground: Probability = 0.5
    """Probability that a patch is centred on a foreground voxel. Its class is drawn uniformly from the classes of the
    case, or by `sampling.class_weights`."""
    sampling: SamplingConfig | None = None
    """Classes and cases that are drawn more often; null draws all evenly."""

    @property
    def names_channels(self) -> bool:
        """True if the preparation has settings of single channels, by their names."""
        crop = self.crop_foreground
        return self.intensity.channels is not None or (crop is not None and crop.channel is not None)

    @property
    def label_settings(self) -> LabelSettings:
        """The keys about the label files."""
        return LabelSettings(
            self.labels,
            self.classes,
            self.regions,
            self.regions_class_order,
            self.ignore,
            self.annotated,
            self.outputs,
        )

    @model_validator(mode="before")
    @classmethod
    def _fill_sources(cls, raw: Any) -> Any:
        """Write out the values that further data sets inherit, so that the resolved configuration states them."""
        if not isinstance(raw, dict) or not isinstance(raw.get("also"), list | tuple):
            return raw
        own = {key: raw.get(key, cls.model_fields[key].default) for key in INHERITED}
        return {**raw, "also": [{**own, **part} if isinstance(part, dict) else part for part in raw["also"]]}

    @model_validator(mode="after")
    def _one_split(self) -> DataConfig:
        keys = ("fold", "folds", *SPLIT_KEYS)
        if problems := split_problems(**{key: getattr(self, key) for key in keys}):
            raise ValueError("\n".join(problems))
        return self

    @field_validator("patch")
    @classmethod
    def _positive_patch(cls, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(patch) < 1:
            raise ValueError(f"expected at least one voxel in each axis, got {list(patch)}")
        return patch

    @field_validator("spacing")
    @classmethod
    def _positive_spacing(cls, spacing: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if spacing is not None and min(spacing) <= 0:
            raise ValueError(f"expected positive voxel sizes in mm, got {list(spacing)}")
        return spacing

    @field_validator("orientation")
    @classmethod
    def _known_axes(cls, orientation: str | None) -> str | None:
        return orientation or None
