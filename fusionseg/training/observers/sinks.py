"""The sinks that a configuration names: TensorBoard, and those of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from fusionseg.config import RunConfig
from fusionseg.config.observation import LogConfig
from fusionseg.config.outside_part import OutsidePart
from fusionseg.observability.sinks.sink import Sink
from fusionseg.observability.sinks.tensorboard import TensorBoardSink
from fusionseg.runs.folder import RunFolder
from fusionseg.utils.errors import UserError

SinkMaker = tuple[str, Callable[[], Sink]]
"""The key of a sink in the configuration, and the function that makes it."""


def check_sinks(config: LogConfig) -> None:
    """Make sure that the sinks of a configuration can be made, before the training. None of them is opened.

    Raises:
        UserError: with all problems.
    """
    problems = [
        f"log.sinks.{index}.name: {sink.name} is no sink (expected a subclass of {Sink.__module__}.{Sink.__name__})"
        for index, sink in enumerate(config.sinks)
        if not (isinstance(sink.part, type) and issubclass(sink.part, Sink))
    ]
    if problems:
        raise UserError(problems)


def sink_makers(config: RunConfig, folder: RunFolder) -> list[SinkMaker]:
    """The sinks of a run, for rank 0.

    Args:
        config: the configuration of the run.
        folder: the run folder.
    """
    makers: list[SinkMaker] = []
    if config.log.tensorboard:
        makers.append(("log.tensorboard", lambda: TensorBoardSink(folder.path)))
    makers += [(f"log.sinks.{index} ({sink.name})", _maker_of(sink)) for index, sink in enumerate(config.log.sinks)]
    return makers


def _maker_of(sink: OutsidePart) -> Callable[[], Sink]:
    def make() -> Sink:
        made: Sink = sink.part(**sink.args)
        return made

    return make
