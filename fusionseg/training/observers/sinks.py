"""The sinks that a configuration names: TensorBoard, trackers, and those of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from fusionseg.config import RunConfig
from fusionseg.config.observation import LogConfig
from fusionseg.config.outside_part import OutsidePart
from fusionseg.observability.sinks import mlflow_sink, wandb_sink
from fusionseg.observability.sinks.mlflow_sink import MlflowSink
from fusionseg.observability.sinks.sink import Sink
from fusionseg.observability.sinks.tensorboard import TensorBoardSink
from fusionseg.observability.sinks.wandb_sink import WandbSink
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.tracker_ids import TrackerIds
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
    trackers = {wandb_sink.NAME: config.wandb, mlflow_sink.NAME: config.mlflow}
    missing = [name for name, settings in trackers.items() if settings is not None and not _is_installed(name)]
    problems += [
        f"log.{name}: the package {name} is missing; pip install 'fusionseg[{name}]', or set log.{name}=null"
        for name in missing
    ]
    if config.wandb is not None and wandb_sink.NAME not in missing:
        problem = wandb_sink.login_problem(config.wandb.mode)
        problems += [f"log.wandb: {problem}"] if problem else []
    if problems:
        raise UserError(problems)


def sink_makers(config: RunConfig, folder: RunFolder, step: int) -> list[SinkMaker]:
    """The sinks of a run, for rank 0.

    Args:
        config: the configuration of the run.
        folder: the run folder.
        step: the step at which this start begins.
    """
    makers: list[SinkMaker] = []
    if config.log.tensorboard:
        makers.append(("log.tensorboard", lambda: TensorBoardSink(folder.path)))
    ids = TrackerIds(folder.path, step)
    if (wandb := config.log.wandb) is not None:
        makers.append(("log.wandb", lambda: WandbSink(ids, **wandb.model_dump())))
    if (mlflow := config.log.mlflow) is not None:
        makers.append(("log.mlflow", lambda: MlflowSink(ids, **mlflow.model_dump())))
    makers += [(f"log.sinks.{index} ({sink.name})", _maker_of(sink)) for index, sink in enumerate(config.log.sinks)]
    return makers


def _is_installed(package: str) -> bool:
    """Tell whether a package is there. A folder `wandb/` in the working directory is none, but has a spec."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _maker_of(sink: OutsidePart) -> Callable[[], Sink]:
    def make() -> Sink:
        made: Sink = sink.part(**sink.args)
        return made

    return make
