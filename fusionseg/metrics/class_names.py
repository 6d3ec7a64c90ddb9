"""Names of classes in the section `evaluate`, compared with those of a data set or a network."""

from __future__ import annotations

from collections.abc import Sequence

from fusionseg.config.training.evaluation import EvaluateConfig
from fusionseg.utils.errors import UserError, suggest


def check_class_names(settings: EvaluateConfig, names: Sequence[str]) -> None:
    """Refuse names in `evaluate.lesions` and `evaluate.vessels` that no class or region has.

    Args:
        settings: the section `evaluate`.
        names: of the classes, without the background, or of the regions.

    Raises:
        UserError: with all of them.
    """
    problems = [
        f"evaluate.{key}: no class or region {name!r}; {suggest(name, names)}"
        for key, given in (("lesions", settings.lesions), ("vessels", settings.vessels))
        for name in given
        if name not in names
    ]
    if problems:
        raise UserError(problems)
