"""Weights & Biases."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from fusionseg.observability.sinks.sink import Picture, RunEnd, RunStart, Sink
from fusionseg.observability.sinks.values import best_scores, numbers_of, pixels_of

NAME = "wandb"
"""The package, its key in the configuration, and the extra that installs it."""
_KINDS = ("train", "val", "gpu", "event")


def login_problem(mode: str | None) -> str:
    """Say why a run cannot be sent; empty if it can, or if it is not sent (offline). Nothing is asked or sent.

    Args:
        mode: "online" or "offline"; None for that of WANDB_MODE.
    """
    if _mode(mode) != "online":
        return ""
    if (environment := _mode(None)) != "online":
        return f"mode is online, but WANDB_MODE is {environment}; unset WANDB_MODE, or set log.wandb.mode=offline"
    import wandb

    try:
        if wandb.login(prompt=False, verify=False):
            return ""
    except wandb.errors.Error as error:
        return f"{error}".partition("\n")[0]
    return "there is no API key; run `wandb login`, set WANDB_API_KEY, or set log.wandb.mode=offline"


class WandbSink(Sink):
    """A run at Weights & Biases, or a folder `wandb/` in the run folder for `wandb sync` (offline).

    Records are rows with an axis for each kind, `train/step` and `val/step`. A row of one kind may come after one of
    another kind and the same step, for which the step of W&B itself is too coarse: it only rises.
    """

    def __init__(
        self,
        ids: MutableMapping[str, str],
        *,
        project: str,
        entity: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
    ) -> None:
        """Args:
        ids: the ids of the run, in which that of W&B is kept.
        project: of W&B.
        entity: team or user; None for the default of the account.
        tags: of the run.
        mode: "online" or "offline"; None for that of WANDB_MODE.
        """
        self._ids = ids
        self._place = {"project": project, "entity": entity, "tags": list(tags) or None}
        self._mode = _mode(mode)
        self._run: Any = None
        self._step = 0
        self._replaced: list[Path] = []
        """The offline folders of earlier starts, which this start writes again."""

    def start(self, run: RunStart) -> Mapping[str, int]:
        """Begin or continue the run.

        What a run has online is asked. Offline nobody can be asked, and a part of a run cannot be added to another one:
        each start writes the whole run. The folders of earlier starts are deleted when it has gone on.
        """
        import wandb

        if NAME not in self._ids:
            self._ids[NAME] = uuid.uuid4().hex[:8]
        before = sorted((run.folder / "wandb").glob(f"offline-run-*-{self._ids[NAME]}"))
        self._run = wandb.init(
            **self._place,
            id=self._ids[NAME],
            name=run.name,
            dir=str(run.folder),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            config={**run.config, "environment": dict(run.environment)},
            allow_val_change=True,
            settings=wandb.Settings(console="off", quiet=True),
        )
        for kind in _KINDS:
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
        if self._mode == "online":
            steps = {kind: self._run.summary.get(f"{kind}/step") for kind in _KINDS}
            return {kind: int(step) for kind, step in steps.items() if step is not None}
        if self._mode == "offline":
            self._step = run.step
            self._replaced = [folder for folder in before if folder != Path(self._run.dir).parent]
        return {}

    def record(self, record: Mapping[str, Any]) -> None:
        """Add a row with the numbers of a record."""
        self._run.log({f"{record['kind']}/step": record["step"], **numbers_of(record)})
        if record["step"] > self._step:  # the records of the earlier starts are written again
            self._delete_replaced()

    def image(self, name: str, image: Picture, step: int) -> None:
        """Add a picture."""
        import wandb

        self._run.log({"val/step": step, f"val/{name}": wandb.Image(pixels_of(image))})

    def finish(self, end: RunEnd) -> None:
        """Add the end record to the summary, and wait until all is sent. An interrupted run is "preempted" there.

        A run that goes on without its sink stays open: W&B closes it at the end of the process, with its exit status.
        """
        run, self._run = self._run, None
        if run is None or end.is_abandoned:
            return
        run.summary.update({**best_scores(end.record), "result": dict(end.record)})
        if not end.is_final and not end.has_failed:
            run.mark_preempting()
        run.finish(exit_code=0 if end.is_final else 1)
        self._delete_replaced()

    def _delete_replaced(self) -> None:
        while self._replaced:
            shutil.rmtree(self._replaced.pop())


def _mode(mode: str | None) -> str:
    return mode or os.environ.get("WANDB_MODE") or "online"
