"""The section `cache`: the prepared volumes during training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fusionseg.config.section import Positive, SectionWithOptions

_MEMORIES = ("auto", "host", "disk")
"""Values of `device` that `placement` may have as a short form."""


class CacheConfig(SectionWithOptions):
    """Cache of the prepared volumes during training: where they are, and which of them a rank holds."""

    left_out: ClassVar[tuple[str, ...]] = ("read_threads", "share_epochs", "window_fraction", "replace_fraction")

    device: Literal["auto", "accelerator", "host", "disk"] = "auto"
    """The memory of the volumes. `accelerator`: that of the training device; a run whose volumes do not fit is refused.
    `host`: the memory of this machine, where the ranks of a node share one copy; refused too if it is too small.
    `disk`: none; threads read the parts of the volumes that the next patches need. `auto`: the first of these three
    that has room, with the reasons in a table. No value changes the samples. `auto` uses
    the disk with `placement: replicated` only."""
    placement: Literal["replicated", "sharded", "rotating", "auto", "host", "disk"] = "replicated"
    """The cases that a rank draws from. `replicated`: every case. `sharded`: its share of the cases, which it holds in
    memory; the samples then depend on the number of ranks and on `train.micro_batch`. `rotating`: a window of the
    cases, the same on every rank, that moves on during the training. `auto`, `host` and `disk` are short for
    `replicated` with this `device`."""
    dtype: Literal["float16", "float32"] = "float16"
    """Data type of the cached images; the batch is float32 in any case."""
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest share of the memory free at the start that the cache may take."""
    share_epochs: Positive = 10
    """Epochs after which `sharded` divides the cases anew. Each rank then loads its new share."""
    window_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the training cases that `rotating` holds in its window."""
    replace_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the window that `rotating` replaces after each case of the window was drawn once."""
    read_threads: Positive = 4
    """Threads of each rank that read volumes from the disk. They read twice as many micro-batches ahead."""

    @model_validator(mode="before")
    @classmethod
    def _of_short_form(cls, value: Any) -> Any:
        """Replace a memory that is given as the placement."""
        if not isinstance(value, dict) or value.get("placement") not in _MEMORIES:
            return value
        memory, stated = value["placement"], value.get("device", "auto")
        if stated not in ("auto", memory):
            raise ValueError(
                f"placement: {memory} is short for device: {memory}, but device is {stated!r}; leave one of them out"
            )
        return {**value, "placement": "replicated", "device": memory}

    @model_validator(mode="after")
    def _in_memory(self) -> Self:
        if self.placement != "replicated" and self.device == "disk":
            raise ValueError(
                f"device: is disk, but placement: {self.placement} holds cases in memory; set device to auto,"
                " accelerator or host, or placement to disk"
            )
        return self
