"""Self-contained pages in tests: their elements, and what a headless browser says of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from numpy.typing import NDArray

VOID = {"meta", "img", "br", "hr", "link", "input"}
NEEDS_CHROMIUM = pytest.mark.skipif(
    shutil.which("chromium") is None and "chromium" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
    reason="needs chromium",
)


class Page(HTMLParser):
    """The elements of a page; elements that are not closed in their order are a fault."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag in ("a", "use", "link"):
            self.links += [value or "" for name, value in attrs if name in ("href", "xlink:href")]
        self.sources += [found["src"] or ""] if "src" in found else []
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"{tag} is closed, and another element is open"


def assert_self_contained(path: Path, *, neighbours: bool = False) -> Page:
    """Check that a page requests no file but itself, and that its links within it lead somewhere.

    Args:
        path: of the page.
        neighbours: links to files below its folder are allowed; they must exist.
    """
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(re.match(r"data:image/(png|jpeg);base64,", source) for source in page.sources)
    assert not page.tags & {"link", "iframe", "object", "embed", "base"} and "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        else:
            assert neighbours and (path.parent / unquote(link)).exists(), link
    return page


def open_in_chromium(path: Path, folder: Path, *, size: tuple[int, int] = (1200, 2000)) -> NDArray[np.uint8]:
    """Open a page in a browser without a screen, check that it asks for nothing and reports no error, and look at it.

    Args:
        path: of the page.
        folder: for the files of the browser.
        size: width and height of the window, in pixels.

    Returns:
        The screenshot, RGB (H, W, 3).
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    picture, requests = folder / "page.png", folder / "net.json"
    program = shutil.which("chromium")
    assert program is not None, "chromium is missing (apt-get install chromium)"
    command = [
        *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"),
        *("--enable-logging=stderr", "--v=0", f"--log-net-log={requests}"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--screenshot={picture}", path.resolve().as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0 and picture.exists(), done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    assert requested_by_page(requests) == set(), "the page asks another place"
    return np.asarray(Image.open(picture).convert("RGB"))


def requested_by_page(log: Path) -> set[str]:
    """Addresses outside the file that the page asked for. The services of the browser itself have no origin.

    Args:
        log: of the browser's network, by `--log-net-log`.
    """
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    return {str(one["url"]) for one in events if "url" in one and one.get("initiator") not in (None, "not an origin")}
