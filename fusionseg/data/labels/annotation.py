"""The classes that each case annotates, where a data set has cases that do not annotate all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from fusionseg.config.data.labels import Outputs
from fusionseg.data.formats.case import Case
from fusionseg.data.labels.reading import ReadLabels
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.utils.errors import some_of, suggest

KEY = "data.annotated"


def by_pattern(cases: Sequence[Case], patterns: Mapping[str, Sequence[str]], problems: list[str]) -> list[Case]:
    """Set the annotated classes of the cases that `data.annotated` names; they replace those of a datalist.

    Args:
        cases: of the data set.
        patterns: pattern of case names -> names of classes.
        problems: gets patterns that match no case, and cases with two different answers.
    """
    matches: dict[str, list[str]] = defaultdict(list)
    for pattern in patterns:
        names = [case.name for case in cases if fnmatchcase(case.name, pattern)]
        if not names:
            problems.append(f"{KEY}.{pattern}: no case has such a name; correct it, or remove it")
        for name in names:
            matches[name].append(pattern)
    for name, found in matches.items():
        if len({frozenset(patterns[pattern]) for pattern in found}) > 1:
            problems.append(
                f"{KEY}: the case {name} matches {' and '.join(found)}, which differ; let only one of them match"
            )
    return [
        replace(case, annotated=tuple(patterns[matches[case.name][0]])) if case.name in matches else case
        for case in cases
    ]


def outputs_of_cases(
    cases: Sequence[Case], labels: ReadLabels, source: Path, keyed: Collection[str], problems: list[str]
) -> list[Case]:
    """Replace the stated names of annotated classes by the outputs of the scheme that follow from them.

    An output is annotated if it is named, or if it consists of labels that are named. A region that is named says
    nothing about the smaller regions within it. A case that annotates all outputs, or has no label, gets None.

    Args:
        cases: with the names as the data set or `data.annotated` states them.
        labels: of the data set.
        source: the JSON file, for the messages.
        keyed: names of the cases whose classes `data.annotated` states.
        problems: gets unknown names, and cases that annotate none of the outputs.
    """
    unknown: dict[tuple[str, str], list[str]] = defaultdict(list)
    none: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    done = []
    for case in cases:
        if case.annotated is None or case.label is None:
            done.append(replace(case, annotated=None) if case.annotated is not None else case)
            continue
        where = KEY if case.name in keyed else str(source)
        known = {*labels.values_of, *labels.scheme.output_names}
        for name in case.annotated:
            if name not in known:
                unknown[where, name].append(case.name)
        found = _outputs(case.annotated, labels)
        if not found and known.issuperset(case.annotated):
            none[where, case.annotated].append(case.name)
        done.append(replace(case, annotated=None if len(found) == len(labels.scheme.output_names) else found))
    for (where, name), names in unknown.items():
        problems.append(
            f"{where}: no class is named {name!r} (annotated by {some_of(names, 3)});"
            f" {suggest(name, [*dict.fromkeys((*labels.scheme.output_names, *list(labels.values_of)[1:]))])}"
        )
    for (where, stated), names in none.items():
        problems.append(
            f"{where}: {some_of(names, 3)} annotate {', '.join(stated) or 'nothing'}, and so none of"
            f" {', '.join(labels.scheme.output_names)}; take these cases, or their labels, out"
        )
    return done


def with_outputs(scheme: LabelScheme, cases: Iterable[Case], outputs: Outputs, problems: list[str]) -> LabelScheme:
    """The scheme with the kind of outputs that `data.outputs` asks for.

    Args:
        scheme: of the data set.
        cases: the training cases.
        outputs: the key.
        problems: gets a kind of outputs that does not fit the data.
    """
    partial = [case.name for case in cases if case.annotated is not None]
    if outputs == "softmax":
        if scheme.is_regions:
            problems.append(
                "data.outputs: expected sigmoid for regions, which may overlap, got softmax; set it to auto, or choose"
                " classes that exclude each other by data.classes"
            )
        if partial:
            problems.append(
                f"data.outputs: expected sigmoid, because {len(partial)} cases annotate only some classes"
                f" ({some_of(partial, 3)}), got softmax; set it to auto, or take these cases out"
            )
    sigmoid = scheme.sigmoid or outputs == "sigmoid" or (outputs == "auto" and bool(partial))
    return scheme if sigmoid == scheme.sigmoid else replace(scheme, sigmoid=sigmoid)


def _outputs(stated: Sequence[str], labels: ReadLabels) -> tuple[str, ...]:
    """Names of the outputs that are annotated, in the order of the scheme."""
    scheme = labels.scheme
    groups = [set(labels.values_of.get(name, ())) for name in stated]
    found = []
    for name, row in zip(scheme.output_names, scheme.membership, strict=True):
        of_output = {
            value for label, inside in zip(scheme.classes, row, strict=True) if inside for value in label.values
        }
        # Who outlines a whole region does not tell its parts apart: only labels inside the output count.
        within = [group for group in groups if group <= of_output]
        if name in stated or (within and set.union(*within) == of_output):
            found.append(name)
    return tuple(found)
