"""Cases that differ from the other cases of their data set, each with the reason in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fusionseg.data.fingerprint.case import AnnotationGap, CaseFingerprint
from fusionseg.data.fingerprint.distance import FEW, FEWEST_CASES, RARE, Kind, far_values, large_groups
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.utils.errors import some_of
from fusionseg.utils.tables import counted, plain_number

MOST_LISTED_GAPS = 3
AXES = "xyz"


@dataclass(frozen=True)
class Outlier:
    """A case that differs from the others in one respect.

    Args:
        case: its name.
        kind: of the difference.
        reason: in words, with the value of the case and of the data set.
    """

    case: str
    kind: Kind
    reason: str


@dataclass(frozen=True)
class Outliers:
    """The outliers of a data set.

    Args:
        cases: single cases, in the order of the data set; a case may have several.
        remarks: differences that many cases have.
    """

    cases: tuple[Outlier, ...]
    remarks: tuple[str, ...]

    def to_text(self) -> str:
        """The outliers as plain text, one in a line."""
        lines = [f"Outliers ({len(self.cases)})" if self.cases else "Outliers: no single case differs much"]
        lines += [f"  [{one.kind}] {one.case}: {one.reason}" for one in self.cases]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])

    def sentences(self, most: int) -> list[str]:
        """The remarks and the outliers as sentences.

        Args:
            most: number of outliers to list; a sentence counts the others.
        """
        sentences = [as_sentence(remark) for remark in self.remarks]
        sentences += [f"{one.case} differs: {one.reason}." for one in self.cases[:most]]
        more = len(self.cases) - most
        return [*sentences, *([f"{more} more outliers are in the fingerprint."] if more > 0 else [])]


@dataclass(frozen=True)
class _Group:
    """The outliers in one respect: `found`, among `cases`; `subject` describes them in a remark. `parts` is the remark
    about large groups of cases, if there are such."""

    kind: Kind
    cases: int
    subject: str
    found: Sequence[tuple[str, str]]
    """Name of the case, and reason."""
    parts: str = ""


def as_sentence(text: str) -> str:
    """Make a sentence of a remark.

    Args:
        text: without a full stop.
    """
    return f"{text[0].upper()}{text[1:]}."


def find_outliers(fingerprint: Fingerprint) -> Outliers:
    """Find the cases that differ from the other cases.

    Args:
        fingerprint: of the data set.
    """
    single: list[Outlier] = []
    remarks: list[str] = []
    groups = [*_geometry(fingerprint), *_intensities(fingerprint)]
    groups += [group for name in fingerprint.outputs for group in _annotation(fingerprint, name)]
    for group in groups:
        if len(group.found) <= max(FEW, RARE * group.cases):
            single += [Outlier(name, group.kind, reason) for name, reason in group.found]
            remarks += [group.parts] if group.parts else []
        else:
            names = some_of([name for name, _ in group.found], 5)
            remarks.append(f"{group.subject} in {len(group.found)} of {group.cases} cases: {names}")
    order = {case.name: index for index, case in enumerate(fingerprint.cases)}
    single.sort(key=lambda outlier: order[outlier.case])
    return Outliers(tuple(single), tuple(remarks))


def _geometry(fingerprint: Fingerprint) -> Iterator[_Group]:
    cases = fingerprint.cases
    for axis, name in enumerate(AXES):
        spacings = [case.spacing_mm[axis] for case in cases]
        far, typical = far_values(spacings, "spacing")
        yield _Group(
            "spacing",
            len(cases),
            f"the voxel size along {name} is from {min(spacings, default=0):.4g} to {max(spacings, default=0):.4g} mm,"
            f" and far from the median ({typical:.4g} mm)",
            [
                (cases[i].name, f"the voxel size along {name} is {spacings[i]:.4g} mm (median {typical:.4g} mm)")
                for i in far
            ],
            _parts(f"the voxel size along {name}", cases, spacings, "spacing", unit="mm"),
        )
        extents = [case.size_mm[axis] for case in cases]
        far, typical = far_values(extents, "shape")
        yield _Group(
            "shape",
            len(cases),
            f"the extent along {name} is from {min(extents, default=0):.4g} to {max(extents, default=0):.4g} mm,"
            f" and far from the median ({typical:.4g} mm)",
            [
                (
                    cases[i].name,
                    f"the volume extends {extents[i]:.4g} mm along {name}, {cases[i].shape[axis]} voxels"
                    f" (median {typical:.4g} mm)",
                )
                for i in far
            ],
            _parts(f"the extent along {name}", cases, extents, "shape", unit="mm"),
        )


def _intensities(fingerprint: Fingerprint) -> Iterator[_Group]:
    """Cases whose intensities have another scale: of the foreground, or of the volume without any foreground."""
    for channel, channel_name in enumerate(fingerprint.channels):
        where = "the foreground"
        measured = [(case, case.foreground[channel]) for case in fingerprint.cases]
        if all(part is None for _, part in measured):
            where = "the volume"
            measured = [(case, case.whole[channel]) for case in fingerprint.cases]
        known = [(case, part) for case, part in measured if part is not None]
        medians, deviations = ([getattr(part, name) for _, part in known] for name in ("median", "deviation"))
        # Without a logarithm, the unit of a difference is the spread of the intensities within a case.
        spread = float(np.median(deviations)) if known else 0.0
        measures = {"median": medians, "deviation": deviations}
        if all(part.minimum >= 0 and part.median > 0 for _, part in known):  # MRI: the unit is another in each case
            relative = [deviation / median for deviation, median in zip(deviations, medians, strict=True)]
            measures = {"median": medians, "deviation relative to the median": relative}
        for measure, values in measures.items():
            what = f"the {measure} of the intensities of {where} in {channel_name}"
            far, typical = far_values(values, "intensity", spread)
            yield _Group(
                "intensity",
                len(known),
                f"{what} is from {min(values, default=0):.4g} to {max(values, default=0):.4g}, and far from that of the"
                f" other cases ({typical:.4g})",
                [(known[i][0].name, f"{what} is {values[i]:.4g} (median of the cases {typical:.4g})") for i in far],
                _parts(what, [case for case, _ in known], values, "intensity", spread),
            )


def _annotation(fingerprint: Fingerprint, name: str) -> Iterator[_Group]:
    """Cases in which the annotation of an output differs: absent, small or large, in many pieces, or with gaps."""
    annotated = [case for case in fingerprint.labelled if name in case.outputs]
    present = [case for case in annotated if case.outputs[name].voxels]
    absent = [case.name for case in annotated if not case.outputs[name].voxels]
    if len(annotated) >= FEWEST_CASES and len(absent) <= RARE * len(annotated):
        reason = f"{name} is not annotated; {len(present)} of {len(annotated)} cases have it"
        yield _Group("annotation", len(annotated), "", [(case, reason) for case in absent])
    volumes = [case.outputs[name].volume_mm3 / 1000 for case in present]
    far, typical = far_values(volumes, "volume")
    yield _Group(
        "volume",
        len(present),
        f"{name} has from {plain_number(min(volumes, default=0))} to {plain_number(max(volumes, default=0))} ml, and a"
        f" volume far from the median ({plain_number(typical)} ml)",
        [
            (present[i].name, f"{name} has {plain_number(volumes[i])} ml (median {plain_number(typical)} ml)")
            for i in far
        ],
    )
    counts = [float(case.outputs[name].components) for case in present]
    far, typical = far_values(counts, "components")
    yield _Group(
        "components",
        len(present),
        f"{name} has up to {max(counts, default=0):g} connected components (median {typical:g}), many more",
        [(present[i].name, _components(name, present[i], typical)) for i in far if counts[i] > typical],
    )
    yield _Group(
        "annotation",
        len(present),
        f"{name} has slices without annotation between annotated slices",
        [(case.name, _gaps(name, case.outputs[name].gaps)) for case in present if case.outputs[name].gaps],
    )


def _components(name: str, case: CaseFingerprint, typical: float) -> str:
    output = case.outputs[name]
    rest = output.voxels - output.largest_component
    return (
        f"{name} has {output.components} connected components (median {typical:g}); all but the largest have {rest} of"
        f" {output.voxels} voxels"
    )


def _gaps(name: str, gaps: Sequence[AnnotationGap]) -> str:
    listed = ", ".join(
        f"{AXES[gap.axis]} = {gap.start}" + (f" to {gap.stop - 1}" if gap.slices > 1 else "")
        for gap in gaps[:MOST_LISTED_GAPS]
    )
    more = f" and {len(gaps) - MOST_LISTED_GAPS} more" if len(gaps) > MOST_LISTED_GAPS else ""
    return (
        f"{name} has slices without annotation between annotated slices: {listed}{more} (voxels from 0, in RAS order)"
    )


def _parts(
    what: str,
    cases: Sequence[CaseFingerprint],
    values: Sequence[float],
    kind: Kind,
    spread: float = 0.0,
    unit: str = "",
) -> str:
    """A remark about large groups of cases, between whose values there is a gap of the least factor; empty if there are
    none.

    Args:
        what: the value, in words.
        cases: with the values.
        values: one for each case.
        kind: as for `far_values`.
        spread: as for `far_values`.
        unit: of the values.
    """
    listed = [
        f"{np.median([values[i] for i in group]):.4g}{unit and f' {unit}'} in {counted(len(group), 'case')}"
        f" ({some_of([cases[i].name for i in group], 3)})"
        for group in large_groups(values, kind, spread)
    ]
    return f"{what} has {len(listed)} groups of values: {', '.join(listed)}" if listed else ""
