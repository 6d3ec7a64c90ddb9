"""The section `cache`: the prepared volumes in memory during training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusionseg.config.section import Section


class CacheConfig(Section):
    """Cache of the prepared volumes during training."""

    device: Literal["auto", "accelerator", "host"] = "auto"
    """`accelerator`: the memory of the training device; a run whose volumes do not fit is refused. `host`: the memory
    of this machine, where the ranks of a node share one copy. `auto`: the training device if the volumes fit, else the
    host, with a message."""
    placement: Literal["replicated"] = "replicated"
    """Every rank holds every case."""
    dtype: Literal["float16", "float32"] = "float16"
    """Data type of the cached images; the batch is float32 in any case."""
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest share of the memory free at the start that the cache may take."""
