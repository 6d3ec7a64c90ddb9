"""The page of a fingerprint: one HTML file with everything in it, which asks no other place for anything."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from fusionseg.data.fingerprint.case import CaseFingerprint, Intensities
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.data.fingerprint.outliers import Outliers, as_sentence
from fusionseg.data.fingerprint.preview import LONGEST_SIDE, Preview
from fusionseg.observability.pictures import paint
from fusionseg.utils.tables import plain_number

MOST_PICTURES = 24
MOST_COLUMNS = 8
"""Number of outputs with columns of their own in the table of cases."""
LEVELS = (0.5, 5.0, 50.0, 95.0, 99.5)

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1d2733;max-width:1150px;margin:24px auto;padding:0 20px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:34px 0 8px;border-bottom:1px solid #d8dee6;padding-bottom:3px}
p{margin:6px 0}.note{color:#5b6775;font-size:13px}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:14px 0}
.tiles div{background:#f2f5f9;border-radius:6px;padding:8px 14px}
.tiles b{display:block;font-size:17px}.tiles span{color:#5b6775;font-size:12px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}
th,td{padding:3px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid #e6eaef}
th{background:#f2f5f9;position:sticky;top:0}th.sort{cursor:pointer}
td.text,th.text{text-align:left}td.reason{text-align:left;white-space:normal}
tr.out td:first-child{border-left:3px solid #d1495b}tr:target td{background:#fff3c4}
.pictures{display:flex;flex-wrap:wrap;gap:12px}.pictures figure{margin:0;font-size:12px;width:126px}
.pictures img{image-rendering:pixelated;background:#000;display:block}
.pictures .out{color:#b3263c}svg{width:100%;height:auto}a{color:#2b5d92}
"""
_SORT = """
document.querySelectorAll('th.sort').forEach(function(th){th.addEventListener('click',function(){
var body=th.closest('table').tBodies[0],i=th.cellIndex,up=th.dataset.up!=='1';th.dataset.up=up?'1':'0';
function key(row){var t=row.cells[i].dataset.v||row.cells[i].textContent;return t===''||isNaN(t)?t:+t}
Array.from(body.rows).sort(function(a,b){var x=key(a),y=key(b);
return (typeof x===typeof y?(x<y?-1:x>y?1:0):(typeof x==='number'?-1:1))*(up?1:-1)})
.forEach(function(r){body.append(r)})})});
"""

Cell = tuple[str, str]
"""Content of a cell of the table of cases as HTML, and the value that it is sorted by."""


def make_page(fingerprint: Fingerprint, outliers: Outliers, figure: str) -> str:
    """Make the page.

    Args:
        fingerprint: of the data set.
        outliers: of its cases.
        figure: an SVG whose points lead to `case_anchors`.
    """
    title = f"Fingerprint of {escape(fingerprint.dataset)}"
    parts = [
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        "<p class='note'>The training cases as they are stored. x runs from left to right, y from back to front, z from"
        " feet to head (RAS), whatever the order of the voxels in the files is.</p>",
        _tiles(fingerprint),
        "<h2>Cases to look at</h2>",
        _outlier_table(fingerprint, outliers),
        "<h2>All cases</h2><p class='note'>One point for each case; red: a case of the list above. A line marks the"
        " median. A click on a point leads to the case.</p>",
        f"<div>{figure}</div>",
        "<h2>Intensities</h2>",
        _intensity_table(fingerprint),
    ]
    if fingerprint.outputs:
        parts += [f"<h2>{'Regions' if fingerprint.is_regions else 'Classes'}</h2>", _output_table(fingerprint)]
    if fingerprint.previews:
        parts += ["<h2>Pictures</h2>", _pictures(fingerprint, outliers)]
    parts += [
        "<h2>Table of the cases</h2><p class='note'>A click on a heading sorts the table.</p>",
        _case_table(fingerprint, outliers),
        f"<script>{_SORT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def case_anchors(fingerprint: Fingerprint) -> dict[str, str]:
    """Addresses of the rows of the cases within the page, by name of the case."""
    return {case.name: f"#case{index}" for index, case in enumerate(fingerprint.cases)}


def inline_svg(text: str) -> str:
    """The element of an SVG file, without the header and metadata that have no meaning within a page."""
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def _tiles(fingerprint: Fingerprint) -> str:
    cases = fingerprint.cases
    tiles = [
        (f"{len(cases)}", "training cases" + (f", {len(fingerprint.damaged)} damaged" if fingerprint.damaged else "")),
        (f"{len(fingerprint.labelled)}", "with a label"),
        (", ".join(map(escape, fingerprint.channels)), "channels"),
    ]
    if fingerprint.outputs:
        tiles.append((_shortened(fingerprint.outputs), "regions" if fingerprint.is_regions else "classes"))
    if cases:
        tiles += [
            ("x".join(f"{v:g}" for v in np.median(fingerprint.shapes, axis=0)), "median shape (voxels)"),
            ("x".join(f"{v:.3g}" for v in np.median(fingerprint.spacings_mm, axis=0)), "median voxel size (mm)"),
        ]
    return (
        "<div class='tiles'>"
        + "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in tiles)
        + "</div>"
    )


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
    return note + _table(head, rows, texts=2)


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
    return note + _table(head, rows, texts=1)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """An HTML table whose first columns are text."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (f"<{tag}{' class=text' if index < texts else ''}>{cell}</{tag}>" for index, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<div class='wide'><table>{line('th', head)}{body}</table></div>"


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
    from matplotlib.image import imsave  # slow to import

    buffer = io.BytesIO()
    imsave(
        buffer, paint(preview.image.astype(np.float32), preview.mask.astype(np.int64)).transpose(1, 2, 0), format="png"
    )
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
        cells = [*_cells(case, len(fingerprint.channels), outputs), (", ".join(own), "")]
        marked = (
            f"<td{' class=text' if column == 0 else ''}{f' data-v={value}' if value else ''}>{content}</td>"
            for column, (content, value) in enumerate(cells)
        )
        rows.append(f"<tr id='case{index}'{' class=out' if own else ''}>{''.join(marked)}</tr>")
    titles = "".join(
        f"<th class='sort{' text' if column == 0 else ''}'>{name}</th>" for column, name in enumerate(head)
    )
    return f"<div class='wide'><table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _cells(case: CaseFingerprint, channels: int, outputs: Sequence[str]) -> list[Cell]:
    cells = [
        (escape(case.name), ""),
        ("x".join(map(str, case.shape)), str(case.voxels)),
        ("x".join(f"{size:.4g}" for size in case.spacing_mm), f"{np.prod(case.spacing_mm):.6g}"),
        (case.orientation, ""),
    ]
    for channel in range(channels):
        part = case.foreground[channel] or case.whole[channel]
        cells.append(("" if part is None else plain_number(part.median), ""))
    for name in outputs:
        one = case.outputs.get(name)
        cells.append(("" if one is None else plain_number(one.volume_mm3 / 1000), ""))
    if case.labelled:
        measured = case.outputs.values()
        cells += [(str(sum(one.components for one in measured)), ""), (str(sum(len(one.gaps) for one in measured)), "")]
    elif outputs:
        cells += [("", ""), ("", "")]
    return cells
