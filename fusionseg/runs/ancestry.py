"""The images that the weights of `init_from` were trained on: none of them may be validated on unawares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fusionseg.config import RunConfig
from fusionseg.data.formats.image_digest import ImageSet
from fusionseg.models.weights.loading import read_file
from fusionseg.runs.split import Ancestor, Split
from fusionseg.utils.errors import UserError, some_of


def read_ancestors(path: Path) -> tuple[Ancestor, ...]:
    """A checkpoint that a run starts from, after those that it started from itself.

    Raises:
        UserError: it cannot be read.
    """
    content = read_file(path)
    if not isinstance(content, Mapping) or "split" not in content:
        return (Ancestor(str(path), None),)
    split = Split.from_json(content["split"], str(path))
    return *split.seen, Ancestor(str(path), tuple(sorted({case.image for case in split.training})))


def refuse_seen(config: RunConfig, ancestors: Iterable[Ancestor], validation: Sequence[tuple[str, str]]) -> None:
    """Refuse validation cases that the first weights were trained on, unless the results are to be marked.

    Args:
        validation: name of the case, digest of its image.

    Raises:
        UserError: there are some, and `init_from_seen` is refuse.
    """
    if config.init_from_seen == "mark":
        return
    for ancestor in ancestors:
        images = ImageSet.of(ancestor.images or ())
        if seen := sorted(name for name, digest in validation if digest in images):
            raise UserError(
                f"init_from={config.init_from}: {ancestor.path} was trained on {len(seen)} of the {len(validation)}"
                f" validation cases of this run ({some_of(seen)}), so their figures would not be those of new cases;"
                " start from a run that held them out (the same data.fold, data.folds and data.fold_seed), or set"
                " init_from_seen=mark to go on and mark every result"
            )
