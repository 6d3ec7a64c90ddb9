"""Self-contained HTML pages: style, tables, tiles and pictures in one file, which requests nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# A browser that reads the page refuses every request but those of this policy: the page's own style, script, pictures.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1d2733;background:#fff;max-width:1150px;margin:24px auto;padding:0 20px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:34px 0 8px;border-bottom:1px solid #d8dee6;padding-bottom:3px}
h3{font-size:15px;margin:20px 0 6px}
p{margin:6px 0}.note{color:#5b6775;font-size:13px}.warning{background:#fff3c4;padding:6px 10px;border-radius:6px}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:14px 0}
.tiles div{background:#f2f5f9;border-radius:6px;padding:8px 14px}
.tiles b{display:block;font-size:17px}.tiles span{color:#5b6775;font-size:12px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}
th,td{padding:3px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid #e6eaef}
th{background:#f2f5f9;position:sticky;top:0}th.sort{cursor:pointer}
td.text,th.text{text-align:left}td.reason{text-align:left;white-space:normal}
tr.out td:first-child{border-left:3px solid #d1495b}tr:target td,figure:target figcaption{background:#fff3c4}
.pictures{display:flex;flex-wrap:wrap;gap:12px}.pictures figure{margin:0;font-size:12px}
.pictures img,img.wide{background:#000;display:block;max-width:100%}
.pictures .out{color:#b3263c}svg{width:100%;height:auto}a{color:#2b5d92}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:14px}.charts figure{margin:0}
figure{margin:12px 0}figcaption{font-size:13px;margin:2px 0}
pre{background:#f2f5f9;border-radius:6px;padding:10px;font-size:12px;overflow-x:auto}
"""
_SORT = """
document.querySelectorAll('th.sort').forEach(function(th){th.addEventListener('click',function(){
var body=th.closest('table').tBodies[0],i=th.cellIndex,up=th.dataset.up!=='1';th.dataset.up=up?'1':'0';
function key(row){var t=row.cells[i].dataset.v||row.cells[i].textContent;return t===''||isNaN(t)?t:+t}
Array.from(body.rows).sort(function(a,b){var x=key(a),y=key(b);
return (typeof x===typeof y?(x<y?-1:x>y?1:0):(typeof x==='number'?-1:1))*(up?1:-1)})
.forEach(function(r){body.append(r)})})});
"""


@dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts."""

    content: str
    """HTML."""
    value: str = ""
    """The value that the cell is sorted by; empty for its content."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table that sorts."""

    cells: Sequence[Cell]
    anchor: str = ""
    """The id of the row, for links to it."""
    is_marked: bool = False
    """Whether the row has a red line at its beginning."""


def html_page(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """Make a page.

    Args:
        title: plain text, the heading of the page too.
        parts: HTML below the heading.
        style: CSS rules that follow the common ones.
    """
    title = escape(title)
    head = (
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}{style}</style></head><body>"
    )
    return "\n".join([head, f"<h1>{title}</h1>", *parts, f"<script>{_SORT}</script></body></html>\n"])


def heading(text: str, note: str = "") -> str:
    """Make the heading of a section.

    Args:
        text: plain text.
        note: plain text below it, in small letters.
    """
    return f"<h2>{escape(text)}</h2>" + (paragraph(note, "note") if note else "")


def paragraph(text: str, kind: Literal["", "note", "warning"] = "") -> str:
    """Make a paragraph.

    Args:
        text: plain text.
        kind: the class of its style.
    """
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>"


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Make a row of tiles.

    Args:
        values: a value and its name, as HTML.
    """
    return (
        "<div class='tiles'>"
        + "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in values)
        + "</div>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """Make a table.

    Args:
        head: HTML of the cells of the header.
        rows: HTML of the cells.
        texts: number of the first columns, which hold text and are aligned to the left.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (f"<{tag}{' class=text' if index < texts else ''}>{cell}</{tag}>" for index, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<div class='wide'><table>{line('th', head)}{body}</table></div>"


def cell_table(cells: Sequence[Sequence[str]]) -> str:
    """Make a table of plain cells; a cell may be `**bold**` or `*italic*`, as in Markdown.

    Args:
        cells: the first row is the header.
    """
    head, *body = ([_cell_html(text) for text in row] for row in cells)
    return table(head, body)


def _cell_html(text: str) -> str:
    for mark, tag in (("**", "b"), ("*", "i")):
        inner = text.removeprefix(mark).removesuffix(mark)
        if len(inner) == len(text) - 2 * len(mark):
            return f"<{tag}>{escape(inner)}</{tag}>"
    return escape(text)


def fact_table(facts: Iterable[tuple[str, str]]) -> str:
    """Make a table of two columns without a header. Long values take several lines.

    Args:
        facts: names and values, as plain text.
    """
    body = "".join(
        f"<tr><td class=text>{escape(name)}</td><td class=reason>{escape(value)}</td></tr>" for name, value in facts
    )
    return f"<div class='wide'><table>{body}</table></div>"


def sortable_table(head: Sequence[str], rows: Iterable[TableRow]) -> str:
    """Make a table that a click on a heading sorts. Its first column is text.

    Args:
        head: HTML of the cells of the header.
        rows: the rows.
    """
    lines = []
    for row in rows:
        marked = (
            f"<td{' class=text' if column == 0 else ''}{f' data-v={cell.value}' if cell.value else ''}>{cell.content}"
            "</td>"
            for column, cell in enumerate(row.cells)
        )
        anchor, kind = f" id='{row.anchor}'" if row.anchor else "", " class=out" if row.is_marked else ""
        lines.append(f"<tr{anchor}{kind}>{''.join(marked)}</tr>")
    titles = "".join(
        f"<th class='sort{' text' if column == 0 else ''}'>{name}</th>" for column, name in enumerate(head)
    )
    return f"<div class='wide'><table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def figure(content: str, caption: str, *, anchor: str = "") -> str:
    """Make a figure with a caption.

    Args:
        content: HTML of the picture or drawing.
        caption: plain text.
        anchor: the id of the figure, for links to it.
    """
    place = f" id='{anchor}'" if anchor else ""
    return f"<figure{place}><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def picture_uri(rgb: NDArray[np.uint8], kind: Literal["png", "jpeg"] = "png") -> str:
    """Encode a picture as the address of an image element.

    Args:
        rgb: (H, W, 3).
        kind: png keeps every value; jpeg takes about a fifth of the bytes for a grey image with noise.
    """
    from PIL import Image  # slow to import

    options: dict[str, Any] = {"optimize": True} if kind == "png" else {"quality": 85, "subsampling": 0}
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def inline_svg(text: str) -> str:
    """The element of an SVG file, without the header and metadata that have no meaning within a page.

    Args:
        text: the content of the file.
    """
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
