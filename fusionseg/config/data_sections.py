"""Sections of the data, its augmentation and its memory: `data`, `augment` and `cache`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from fusionseg.config.data_parts import AugmentationPart, ReaderPart, TransformPart
from fusionseg.config.section import FloatTriple, Pair, Positive, Probability, Section, SectionWithOptions, Triple

Layout = Literal["auto", "msd", "nnunet", "datalist"]
Orientation = Annotated[str, Field(pattern="^[RL][AP][SI]$|^$")]


class IntensityConfig(Section):
    """Normalisation of the raw intensities, after `data.transforms`."""

    mode: Literal["window", "zscore", "none"] = "zscore"
    """`window`: clip to a fixed range (CT) and scale it to [0, 1]; `zscore`: mean 0, deviation 1 per volume
    (MRI); `none`: no normalisation, for `data.transforms` that normalise. With `clip` given and no mode, it is
    `window`."""
    clip: Pair | None = None
    """Lowest and highest raw value. `window` needs it; `zscore` clips before it computes mean and deviation."""
    percentiles: Pair | None = None
    """For `zscore`: clip to these percentiles of the volume (such as [0.5, 99.5]) before mean and deviation are
    computed."""
    nonzero: bool = False
    """For `zscore`: compute mean and deviation of the non-zero voxels, and normalise only them (skull-stripped MRI)."""

    @model_validator(mode="before")
    @classmethod
    def _clip_means_window(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "mode" not in raw and raw.get("clip") is not None:
            return {**raw, "mode": "window"}
        return raw

    @model_validator(mode="after")
    def _complete(self) -> IntensityConfig:
        if self.mode == "window":
            if self.clip is None:
                raise ValueError(
                    "clip: is missing for mode: window; add clip: [lowest, highest], such as [-1000, 600] HU"
                )
            for key in ("percentiles", "nonzero"):
                if getattr(self, key):
                    raise ValueError(f"{key}: belongs to mode: zscore; remove it or change the mode")
        if self.mode == "none":
            for key in ("clip", "percentiles", "nonzero"):
                if getattr(self, key):
                    raise ValueError(f"{key}: has no effect with mode: none; remove it or change the mode")
        for key in ("clip", "percentiles"):
            pair = getattr(self, key)
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"{key}: expected [lowest, highest] with lowest below highest, got {list(pair)}")
        if self.percentiles and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError(f"percentiles: expected values from 0 to 100, got {list(self.percentiles)}")
        return self


class CropForegroundConfig(Section):
    """Crop each volume to the box of the voxels above a raw intensity (the body without the air)."""

    threshold: float
    """Raw intensity: the box holds all voxels above it."""
    margin: Annotated[int, Field(ge=0)] = 4
    """Voxels added on every side."""


class SourceConfig(SectionWithOptions):
    """A further data set to pre-train on. A key that is not given is as in `data`."""

    left_out: ClassVar[tuple[str, ...]] = ("reader", "transforms")

    root: str
    """Folder of the data set (MSD or nnU-Net raw layout), or a MONAI datalist JSON."""
    layout: Layout = "auto"
    """Layout of the folder; `auto` looks at its files."""
    reader: ReaderPart | None = None
    """A reader for other image files than NIfTI; null is that of `data`."""
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


_INHERITED = ("spacing", "orientation", "intensity", "crop_foreground")


class DataConfig(SectionWithOptions):
    """The data set, its preparation, and the shape and position of a sample."""

    left_out: ClassVar[tuple[str, ...]] = ("reader", "transforms")

    root: str | None = None
    """Folder of the data set (MSD or nnU-Net raw layout), or a MONAI datalist JSON."""
    layout: Layout = "auto"
    """Layout of the folder; `auto` looks at its files."""
    reader: ReaderPart | None = None
    """A reader of your own for image files: a dotted path (my_reader:NumpyReader), or {name: ..., args: {...}}. NIfTI
    files are read in any case."""
    also: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    """Further data sets, for pre-training: each with its own root and, where they differ, its own spacing,
    orientation, intensity and crop_foreground."""
    labels: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Names of the label values 0, 1, ...; needed only where the data set does not say them."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold of the validation cases. The cases of all other folds are training cases."""
    folds: Positive = 5
    """Number of folds. The labelled training cases are divided among them by name and seed, unless the data set states
    its folds. 1 trains on all of them and validates on the same cases: to overfit a case, or to use every case. The
    results are then marked, because they say nothing about other cases."""
    fold_seed: int = 0
    """Seed of the division into folds. It is not `seed`, so that runs with several seeds have the same split."""
    train_cases: Positive | None = None
    """Number of training cases that are used, the first of the fold (learning curves, few labels); null uses all."""
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
    skip_broken: bool = False
    """Train without the cases that cannot be prepared, instead of refusing to start."""
    patch: Triple = (96, 96, 96)
    """Voxels of a training patch."""
    samples_per_volume: Positive = 2
    """Consecutive samples that are taken from one volume."""
    foreground: Probability = 0.5
    """Probability that a patch is centred on a foreground voxel. Its class is drawn uniformly from the classes of the
    case."""

    @model_validator(mode="before")
    @classmethod
    def _fill_sources(cls, raw: Any) -> Any:
        """Write out the values that further data sets inherit, so that the resolved configuration states them."""
        if not isinstance(raw, dict) or not isinstance(raw.get("also"), list | tuple):
            return raw
        own = {key: raw.get(key, cls.model_fields[key].default) for key in _INHERITED}
        return {**raw, "also": [{**own, **part} if isinstance(part, dict) else part for part in raw["also"]]}

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


class ShiftIntensityConfig(Section):
    """Add one random value to the whole patch."""

    prob: Probability = 0.5
    """Probability that a sample is changed."""
    offset: Annotated[float, Field(ge=0)] = 0.1
    """The value is drawn uniformly from [-offset, offset], in units of the prepared image."""


class ScaleIntensityConfig(Section):
    """Multiply the whole patch by one random factor."""

    prob: Probability = 0.5
    """Probability that a sample is changed."""
    factor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The factor is drawn uniformly from [1 - factor, 1 + factor]."""


class NoiseConfig(Section):
    """Add Gaussian noise."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    std: Annotated[float, Field(ge=0)] = 0.05
    """Highest standard deviation; each sample draws its own from [0, std]."""


class RotateConfig(Section):
    """Rotate by three random angles, one about each axis."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Each angle is drawn uniformly from [-degrees, degrees]."""


class ScaleConfig(Section):
    """Zoom in or out by one factor for all axes."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    factor: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    """The factor is drawn uniformly from [1 - factor, 1 + factor]; above 1, structures look larger."""


class ElasticConfig(Section):
    """Deform smoothly: random displacements at the points of a coarse grid, interpolated in between."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    spacing: Annotated[int, Field(ge=4)] = 16
    """Voxels between the points of the coarse grid."""
    magnitude: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the displacement at a grid point, in voxels."""


class AugmentConfig(SectionWithOptions):
    """Random changes of the training samples, on the training device. Null switches a change off."""

    left_out: ClassVar[tuple[str, ...]] = ("also",)

    flip: Probability = 0.5
    """Probability of a flip, for each axis separately."""
    shift_intensity: ShiftIntensityConfig | None = None
    """Add one random value to the whole patch."""
    scale_intensity: ScaleIntensityConfig | None = None
    """Multiply the whole patch by one random factor."""
    noise: NoiseConfig | None = None
    """Add Gaussian noise."""
    rotate: RotateConfig | None = None
    """Rotate by random angles."""
    scale: ScaleConfig | None = None
    """Zoom in or out."""
    elastic: ElasticConfig | None = None
    """Deform smoothly."""
    also: Annotated[tuple[AugmentationPart, ...], Field(strict=False)] = ()
    """Further augmentations by dotted path, applied after those above: your own, or random dictionary transforms of
    MONAI."""


class CacheConfig(Section):
    """Cache of the prepared volumes during training."""

    device: Literal["auto", "accelerator", "host"] = "auto"
    """`accelerator`: the memory of the training device; a run whose volumes do not fit is refused. `host`: the memory
    of this machine. `auto`: the training device if the volumes fit, else the host, with a message."""
    placement: Literal["replicated"] = "replicated"
    """Every rank holds every case."""
    dtype: Literal["float16", "float32"] = "float16"
    """Data type of the cached images; the batch is float32 in any case."""
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest share of the memory free at the start that the cache may take."""
