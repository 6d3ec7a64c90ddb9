"""Section about spikes of the training loss: `train.spikes`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusionseg.config.section import Section


class SpikeConfig(Section):
    """Spikes of the training loss: a logged loss that lies far above the median of those before it."""

    action: Literal["off", "warn", "rewind"] = "warn"
    """`warn` writes an event into metrics.jsonl, and a warning. `rewind` also goes back to the last checkpoint before
    the spike, and on with other samples than those of the steps in between. `off` does not look."""
    threshold: Annotated[float, Field(gt=0)] = 8.0
    """Distance from the median that is a spike, in standard deviations. The standard deviation is a robust one, of the
    logged losses in the window."""
    window: Annotated[int, Field(ge=30)] = 100
    """Number of logged losses that a loss is compared with. Nothing is a spike before there are 30."""
    rewinds: Annotated[int, Field(ge=1)] = 3
    """Number of times that a run goes back (`rewind`). A further spike ends it."""
