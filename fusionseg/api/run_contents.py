"""The contents of a run folder: configuration, records, names of channels and classes, trained network."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionseg.utils.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from fusionseg.config import RunConfig
    from fusionseg.data.labels.scheme import LabelScheme


class RunContents:
    """Access to the files of a run folder. The records are read again at each access."""

    def __init__(self, folder: str | Path, *, trust: bool = False) -> None:
        """Args:
        folder: the run folder.
        trust: import code of others that the run names.

        Raises:
            UserError: it is no run folder.
        """
        from fusionseg.runs.run_config import load_run_config
        from fusionseg.runs.trust.consent import trusting

        self.folder = Path(folder)
        self.trust = trust
        with trusting(trust):
            self.config: RunConfig = load_run_config(self.folder)

    def __repr__(self) -> str:
        from fusionseg.runs.cases.split_file import NO_VALIDATION, validates_none

        score = "" if self.best is None else f", {self._score} {self.best[self._score]:.4f}"
        score += f", {NO_VALIDATION}" if validates_none(self.folder) else ""
        return f"{type(self).__name__}({str(self.folder)!r}: {self.status} at step {self.step}{score})"

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records of `metrics.jsonl`, the oldest first; `kind` is "train", "val" or "end"."""
        from fusionseg.runs.records import read_records

        return read_records(self.folder)

    def curve(self, field: str, kind: str | None = None) -> tuple[list[int], list[float]]:
        """Collect the steps and the values of one field of the records, for a plot.

        Args:
            field: a field with numbers: "loss", "lr", "grad_norm", "dice", ...; docs/results.md lists them.
            kind: only records of this kind, "train" or "val". None takes those of the training if they have the field,
                as the loss of both kinds is called "loss".

        Returns:
            The steps, and the value of the field at each of them. Records without a value are left out.

        Raises:
            UserError: no record has the field.
        """
        kinds = ("train", "val") if kind is None else (kind,)
        records = [record for record in self.records if record["kind"] in kinds]
        found = [record for record in records if _is_number(record.get(field))]
        if not found:
            known = sorted({name for record in records for name, value in record.items() if _is_number(value)})
            raise UserError(f"{field}: no record of {self.folder} has this field (expected one of {', '.join(known)})")
        first = min((record["kind"] for record in found), key=kinds.index)
        found = [record for record in found if record["kind"] == first]
        return [record["step"] for record in found], [float(record[field]) for record in found]

    @property
    def status(self) -> str:
        """ "completed", "plateau", "interrupted", "hung" or "failed" (the last end record); else "unfinished"."""
        from fusionseg.runs.records import RunStatus, last_end

        end = last_end(self.folder)
        return str(RunStatus.UNFINISHED if end is None else end["status"])

    @property
    def step(self) -> int:
        """The step of the last record; 0 if there is none."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the best validation, whose weights are those of `best.pt`; None without a validation."""
        scored = [record for record in self.records if record["kind"] == "val" and _is_number(record.get(self._score))]
        return max(scored, key=lambda record: float(record[self._score]), default=None)

    @property
    def _score(self) -> str:
        return self.config.task_info.score

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], LabelScheme]:
        from fusionseg.data.labels.scheme import LabelScheme
        from fusionseg.runs.cases.split import Split, read_split
        from fusionseg.runs.checkpoints import find_weights, read_checkpoint
        from fusionseg.runs.paths import RunPaths

        if RunPaths(self.folder).split.exists():
            split = read_split(self.folder)
            return split.channels, split.scheme
        state = read_checkpoint(path := find_weights(self.folder))
        if "split" in state:  # an archive
            split = Split.from_json(state["split"], str(path))
            return split.channels, split.scheme
        # The run is of a version without split.json.
        return tuple(state["channels"]), LabelScheme.of_names(list(state["labels"].values()))

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image channels that the network reads, in their order."""
        return self._names[0]

    @property
    def labels(self) -> dict[int, str]:
        """Index of each class -> its name; 0 is the background."""
        return self._names[1].labels

    @property
    def scheme(self) -> LabelScheme:
        """The values of the label files that belong to each class, and the outputs of the network."""
        return self._names[1]

    def network(self, checkpoint: str = "best", *, device: str = "cpu") -> nn.Module:
        """Load the trained network, in evaluation mode.

        Args:
            checkpoint: "best" or "last".
            device: "cpu", "cuda" or "auto".

        Returns:
            A module that maps float32 (B, C, X, Y, Z), prepared as `data` of the configuration says, to logits
            (B, C, X, Y, Z). `predict` prepares images; this network does not.

        Raises:
            UserError: there is no checkpoint, or it is damaged.
        """
        from fusionseg.inference.trained_network import inference_device, load_trained
        from fusionseg.runs.trust.consent import trusting

        with trusting(self.trust):
            return load_trained(self.folder, inference_device(device), checkpoint).model


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
