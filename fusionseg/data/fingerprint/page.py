"""The page of a fingerprint: one HTML file with everything in it, which asks no other place for anything."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from fusionseg.data.fingerprint.case import CaseFingerprint, Intensities
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.data.fingerprint.outliers import Outliers, as_sentence
from fusionseg.data.fingerprint.preview import LONGEST_SIDE, Preview
from fusionseg.observability.pictures import paint
from fusionseg.utils.html_page import (
    Cell,
    TableRow,
    heading,
    html_page,
    paragraph,
    picture_uri,
    sortable_table,
    table,
    tiles,
)
from fusionseg.utils.tables import plain_number

MOST_PICTURES = 24
MOST_COLUMNS = 8
"""Number of outputs with columns of their own in the table of cases."""
LEVELS = (0.5, 5.0, 50.0, 95.0, 99.5)

_STYLE = ".pictures figure{width:126px}.pictures img{image-rendering:pixelated}"


def make_page(fingerprint: Fingerprint, outliers: Outliers, figure: str) -> str:
    """Make the page.

    Args:
        fingerprint: of the data set.
        outliers: of its cases.
        figure: an SVG whose points lead to `case_anchors`.
    """
    parts = [
        paragraph(
            "The training cases as they are stored. x runs from left to right, y from back to front, z from feet to"
            " head (RAS), whatever the order of the voxels in the files is.",
            "note",
        ),
        _tiles(fingerprint),
        heading("Cases to look at"),
        _outlier_table(fingerprint, outliers),
        heading(
            "All cases",
            "One point for each case; red: a case of the list above. A line marks the median. A click on a point leads"
            " to the case.",
        ),
        f"<div>{figure}</div>",
        heading("Intensities"),
        _intensity_table(fingerprint),
    ]
    if fingerprint.outputs:
        parts += [heading("Regions" if fingerprint.is_regions else "Classes"), _output_table(fingerprint)]
    if fingerprint.previews:
        parts += [heading("Pictures"), _pictures(fingerprint, outliers)]
    parts += [
        heading("Table of the cases", "A click on a heading sorts the table."),
        _case_table(fingerprint, outliers),
    ]
    return html_page(f"Fingerprint of {fingerprint.dataset}", parts, style=_STYLE)


def case_anchors(fingerprint: Fingerprint) -> dict[str, str]:
    """Addresses of the rows of the cases within the page, by name of the case."""
    return {case.name: f"#case{index}" for index, case in enumerate(fingerprint.cases)}


def _tiles(fingerprint: Fingerprint) -> str:
    cases = fingerprint.cases
    values = [
        (f"{len(cases)}", "training cases" + (f", {len(fingerprint.damaged)} damaged" if fingerprint.damaged else "")),
        (f"{len(fingerprint.labelled)}", "with a label"),
        (", ".join(map(escape, fingerprint.channels)), "channels"),
    ]
    if fingerprint.outputs:
        values.append((_shortened(fingerprint.outputs), "regions" if fingerprint.is_regions else "classes"))
    if cases:
        values += [
            ("x".join(f"{v:g}" for v in np.median(fingerprint.shapes, axis=0)), "median shape (voxels)"),
            ("x".join(f"{v:.3g}" for v in np.median(fingerprint.spacings_mm, axis=0)), "median voxel size (mm)"),
        ]
    return tiles(values)


def _shortened(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(escape, names[:most])) + more


def _outlier_table(fingerprint: Fingerprint, outliers: Outliers) -> str:
    links = case_anchors(fingerprint)
    parts = [f"<p>{escape(as_sentence(remark))}</p>" for remark in outliers.remarks]
    rows = [
        (f"<b>{escape(case.name)}</b>", "damaged", "<br>".join(map(escape, case.reasons)))
        for case in fingerprint.damaged
    ]
    rows += [
        (f"<a href='{links[one.case]}'>{escape(one.case)}</a>", one.kind, escape(one.reason)) for one in outliers.cases
    ]
    if not rows:
        return "".join(parts) + "<p>No single case differs much from the others.</p>"
    body = "".join(
        f"<tr><td class='text'>{case}</td><td class='text'>{kind}</td><td class='reason'>{reason}</td></tr>"
        for case, kind, reason in rows
    )
    head = "<tr><th class='text'>case</th><th class='text'>kind</th><th class='text'>reason</th></tr>"
    return "".join(parts) + f"<div class='wide'><table>{head}{body}</table></div>"


def _intensity_table(fingerprint: Fingerprint) -> str:
    rows = []
    for index, channel in enumerate(fingerprint.channels):
        for where, pooled in (
            ("foreground", fingerprint.foreground_intensities(index)),
            ("volume", fingerprint.whole_intensities(index)),
        ):
            if pooled is not None:
                rows.append([escape(channel), where, *(plain_number(value) for value in _values(pooled))])
    head = ["channel", "voxels of", "mean", "deviation", "lowest", *(f"{level:g} %" for level in LEVELS), "highest"]
    note = (
        "<p class='note'>All cases have the same weight. The volume is without the value that more than half of its"
        " voxels have.</p>"
    )
    return note + table(head, rows, texts=2)


def _values(part: Intensities) -> list[float]:
    return [part.mean, part.deviation, part.minimum, *(part.percentile(level) for level in LEVELS), part.maximum]


def _output_table(fingerprint: Fingerprint) -> str:
    rows = []
    for name in fingerprint.outputs:
        annotated = [case.outputs[name] for case in fingerprint.labelled if name in case.outputs]
        present = [one for one in annotated if one.voxels]
        cells = [escape(name), f"{len(present)} of {len(annotated)}"]
        if present:
            volumes = np.array([one.volume_mm3 for one in present]) / 1000
            counts = [one.components for one in present]
            cells += [plain_number(volume) for volume in (volumes.min(), np.median(volumes), volumes.max())]
            cells += [f"{np.median(counts):g}", f"{max(counts)}", f"{sum(bool(one.gaps) for one in present)}"]
        rows.append(cells + [""] * (8 - len(cells)))
    kind = "region" if fingerprint.is_regions else "class"
    head = [
        kind,
        "cases",
        "smallest (ml)",
        "median (ml)",
        "largest (ml)",
        "components, median",
        "components, most",
        "cases with gaps",
    ]
    note = (
        "<p class='note'>Components are connected by faces, edges and corners. A gap is a slice without annotation"
        " between two slices whose masks overlap.</p>"
    )
    return note + table(head, rows, texts=1)


def _pictures(fingerprint: Fingerprint, outliers: Outliers) -> str:
    """Pictures of the outliers, and of other cases at even distances in the list."""
    outlying = list(dict.fromkeys(one.case for one in outliers.cases if one.case in fingerprint.previews))
    shown = outlying[: MOST_PICTURES // 2]
    others = [name for name in fingerprint.previews if name not in set(outlying)]
    count = min(len(others), MOST_PICTURES - len(shown))
    shown += [others[index] for index in np.unique(np.linspace(0, len(others) - 1, count).astype(int))] if count else []
    links = case_anchors(fingerprint)
    figures = []
    for name in shown:
        preview = fingerprint.previews[name]
        picture = f"<img alt='' width={_width(preview)} src='{_data_uri(preview)}'>"
        kind = " class=out" if name in outlying else ""
        figures.append(
            f"<figure><a href='{links[name]}'>{picture}</a><figcaption{kind}>{escape(name)}</figcaption></figure>"
        )
    planes = ", ".join(sorted({fingerprint.previews[name].plane for name in shown}))
    note = (
        f"<p class='note'>The {planes} slice with the most foreground: {len(shown)} of {len(fingerprint.cases)}, those"
        " of the list above first. The patient's right is on the left.</p>"
    )
    return f"{note}<div class='pictures'>{''.join(figures)}</div>"


def _width(preview: Preview) -> int:
    """Width on the page, in pixels: small volumes are enlarged, all pictures have the same longer side."""
    return round(LONGEST_SIDE * preview.shape[0] / max(preview.shape))


def _data_uri(preview: Preview) -> str:
    painted = paint(preview.image.astype(np.float32), preview.mask.astype(np.int64)).transpose(1, 2, 0)
    return picture_uri((painted * 255).round().astype(np.uint8))


def _case_table(fingerprint: Fingerprint, outliers: Outliers) -> str:
    kinds: dict[str, list[str]] = {}
    for one in outliers.cases:
        kinds.setdefault(one.case, []).append(one.kind)
    outputs = fingerprint.outputs[:MOST_COLUMNS]
    head = ["case", "shape", "voxel size (mm)", "order"]
    head += [f"{escape(channel)} median" for channel in fingerprint.channels]
    head += [f"{escape(name)} (ml)" for name in outputs]
    head += ["components", "gaps", "outlier"] if fingerprint.outputs else ["outlier"]
    rows = []
    for index, case in enumerate(fingerprint.cases):
        own = list(dict.fromkeys(kinds.get(case.name, [])))
        cells = [*_cells(case, len(fingerprint.channels), outputs), Cell(", ".join(own))]
        rows.append(TableRow(cells, anchor=f"case{index}", is_marked=bool(own)))
    return sortable_table(head, rows)


def _cells(case: CaseFingerprint, channels: int, outputs: Sequence[str]) -> list[Cell]:
    cells = [
        Cell(escape(case.name)),
        Cell("x".join(map(str, case.shape)), str(case.voxels)),
        Cell("x".join(f"{size:.4g}" for size in case.spacing_mm), f"{np.prod(case.spacing_mm):.6g}"),
        Cell(case.orientation),
    ]
    for channel in range(channels):
        part = case.foreground[channel] or case.whole[channel]
        cells.append(Cell("" if part is None else plain_number(part.median)))
    for name in outputs:
        one = case.outputs.get(name)
        cells.append(Cell("" if one is None else plain_number(one.volume_mm3 / 1000)))
    if case.labelled:
        measured = case.outputs.values()
        cells += [Cell(str(sum(one.components for one in measured))), Cell(str(sum(len(one.gaps) for one in measured)))]
    elif outputs:
        cells += [Cell(""), Cell("")]
    return cells
