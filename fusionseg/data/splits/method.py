"""The record of the way in which a data set was split, for split.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusionseg.data.splits.named_file import NamedFile


@dataclass(frozen=True)
class SplitFile:
    """A file that a split was made from."""

    path: str
    sha256: str

    @staticmethod
    def of(file: NamedFile | None) -> SplitFile | None:
        """Make the record of a file; None for no file."""
        return None if file is None else SplitFile(str(file.path), file.sha256)


@dataclass(frozen=True)
class SplitMethod:
    """The way in which the cases of a data set were split.

    Two ways are plain and are not recorded: folds that were drawn by name and seed, and folds that the data set states.
    """

    name: Literal["drawn", "stated", "file", "held_out", "all"]
    """`drawn`: by names (of cases or groups) and seed; `stated`: by the data set's JSON; `file`: by `data.splits`;
    `held_out`: the group `data.fold` validates; `all`: nothing validates."""
    group: str | None = None
    """`data.group`, where it keeps cases together."""
    stratify: str | None = None
    """`data.stratify`, where it balances the folds."""
    splits: SplitFile | None = None
    """The file of `data.splits`."""
    table: SplitFile | None = None
    """The file of `data.table`."""

    def describe(self, fold: int | str) -> str:
        """Say in words, for the log, how the cases were split.

        Args:
            fold: `data.fold`.
        """
        source = "" if self.splits is None else f" of {self.splits.path}"
        words = {
            "drawn": f"fold {fold}, drawn by name and seed",
            "stated": f"fold {fold}, as the data set states it",
            "file": f"fold {fold}{source}",
            "held_out": f"the group {fold} is held out",
            "all": "data.fold=all",
        }
        parts = [words[self.name]]
        parts += [f"groups by data.group={self.group}"] if self.group is not None else []
        parts += [f"balanced by data.stratify={self.stratify}"] if self.stratify is not None else []
        return ", ".join(parts)

    @property
    def is_plain(self) -> bool:
        """True if number and seed of the folds describe the split."""
        return self in (SplitMethod("drawn"), SplitMethod("stated"))

    @property
    def states_folds(self) -> bool:
        """True if `data.folds` and `data.fold_seed` have no effect, because the folds are listed."""
        return self.name in ("stated", "file")
