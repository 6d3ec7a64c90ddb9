"""The files that show a fingerprint: JSON for programs, a figure, and a page."""

from __future__ import annotations

import io
from pathlib import Path

from fusionseg.data.fingerprint.figure import STYLE, draw_figure
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.data.fingerprint.outliers import find_outliers
from fusionseg.data.fingerprint.page import case_anchors, make_page
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import whole_file, write_text
from fusionseg.utils.html_page import inline_svg

FILE_NAMES = ("fingerprint.json", "fingerprint.png", "fingerprint.html")
DPI = 130


def write_report(folder: Path, fingerprint: Fingerprint) -> tuple[Path, ...]:
    """Write fingerprint.json, fingerprint.png and fingerprint.html. Earlier ones are replaced.

    Args:
        folder: made if it does not exist.
        fingerprint: of the data set.

    Returns:
        The paths of the files, in this order.

    Raises:
        UserError: no case could be measured.
    """
    from matplotlib import rc_context  # slow to import

    if not fingerprint.cases:
        raise UserError(
            f"{fingerprint.dataset}: there is no fingerprint, because no training case can be used; mend the"
            " errors that fusionseg check lists"
        )
    outliers = find_outliers(fingerprint)
    content, picture, page = (folder / name for name in FILE_NAMES)
    fingerprint.write(content)
    svg = io.StringIO()
    with rc_context(STYLE):
        figure = draw_figure(fingerprint, {one.case for one in outliers.cases}, case_anchors(fingerprint))
        with whole_file(picture) as temporary:
            figure.savefig(temporary, dpi=DPI)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    write_text(page, make_page(fingerprint, outliers, inline_svg(svg.getvalue())))
    return content, picture, page
