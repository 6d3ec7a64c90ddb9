"""The documentation as a site: `make docs` builds it, and a browser needs no network for it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fusionseg.cli import build_parser
from fusionseg.commands.base import subparsers
from fusionseg.utils.version import __version__

pytest.importorskip("material", reason="needs pip install -e '.[docs]'")
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[1]
IN_README = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "first_hour.md": "docs/first_hour.ipynb",
}
"""Pages of the site that are another file in the repository."""
SITE_ONLY = {"commands.md", "profiling_programs.md", "slurm_files.md"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A broken link or anchor, or a page outside the navigation, fails the build."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


class Requests(HTMLParser):
    """Addresses that a browser loads with a page: scripts, styles, pictures and frames. Links are not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [values["src"] or ""] if "src" in values else []
        if tag == "link":
            self.found.append(values["href"] or "")


def requests_of(page: Path) -> list[str]:
    parser = Requests()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


def test_no_page_makes_an_outside_request(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        loaded = [address for address in requests_of(page) if not address.startswith("data:")]
        outside = [address for address in loaded if re.match(r"(\w+:)?//", address)]
        assert not outside, f"{page.relative_to(site)}: {outside}"
        if page.name != "404.html":  # a server sends it for any folder: its addresses begin at the root
            missing = [address for address in loaded if not (page.parent / address.partition("?")[0]).exists()]
            assert not missing, f"{page.relative_to(site)}: {missing}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?https?:", styles)


def test_the_reference_of_the_commands_has_all_of_them_with_their_options(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "commands.html").read_text(encoding="utf-8"))
    for name, parser in subparsers(build_parser()).items():
        assert f"fusionseg {name}" in page
        for action in parser._actions:
            assert all(option in page for option in action.option_strings), (name, action)
    assert "fusionseg configs copy" in page and "predict runs/" in page


def test_the_search_finds_pages_of_all_kinds(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert found >= {"first_hour.html", "commands.html", "configuration.html", "api.html", "recipes/mae75.html"}
    assert any("global_batch" in entry["text"] for entry in index["docs"])
    # A page opened from a file cannot fetch the index: it loads it as a script.
    assert (site / "search/search_index.js").read_text(encoding="utf-8").startswith("var __index")


def test_pages_have_the_version_the_notebook_its_pictures_and_lists_their_tables(site: Path) -> None:
    assert f"fusionseg {__version__}" in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "first_hour_1.png").read_bytes().startswith(b"\x89PNG")
    programs = (site / "profiling_programs.html").read_text(encoding="utf-8")
    assert re.search(r"<li>\s*<p>On the GPU machine.*?<table>.*?</li>", programs, re.DOTALL)  # inside the list item
    assert "|" not in re.sub(r"<[^>]+>", "", re.sub(r"<code>.*?</code>|<script.*?</script>", "", programs, flags=re.S))


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[anchor](#missing)\n")
    config = load_config(
        str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(tmp_path / "site"), nav=["index.md"], hooks=[]
    )
    with pytest.raises(Abort, match="strict"):
        build(config)


def groups_of_the_navigation() -> dict[str, set[str]]:
    """The pages of each group of mkdocs.yml, without those that only the site has."""

    def pages(entry: object) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        values = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(pages, values))  # type: ignore[call-overload]

    navigation = load_config(str(ROOT / "mkdocs.yml")).nav
    groups = {name.lower(): pages(entry) for part in navigation for name, entry in part.items() if name != "Home"}
    return {
        name: {
            IN_README.get(page, f"docs/{page}")
            for page in found - SITE_ONLY
            if page.count("/") == 0 or "README" in page
        }
        for name, found in groups.items()
    }


def test_the_readme_lists_the_pages_of_the_navigation() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## All pages")[2]
    rows = re.findall(r"^\| ([\w-]+) \| (.*) \|$", table, re.MULTILINE)
    listed = {name: set(re.findall(r"\]\(([^)]+)\)", cell)) for name, cell in rows if name != "purpose"}
    assert listed == groups_of_the_navigation()
