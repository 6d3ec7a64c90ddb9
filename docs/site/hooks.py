"""Hooks of mkdocs: pages that are not in docs/ or are made from code, and links that leave docs/.

The links of the Markdown files are those of the repository. On the site, a link to a page outside docs/ leads to its
copy, and a link to another file of the repository leads to a copy of that file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from command_reference import render as render_commands
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook_page import render as render_notebook

from fusionseg.utils.version import __version__

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "profiling/README.md": "profiling_programs.md",
    "slurm/README.md": "slurm_files.md",
    "docs/first_hour.ipynb": "first_hour.md",
}
"""Pages outside docs/ and pages that are made from another file: path in the repository -> path on the site."""


def on_config(config: MkDocsConfig) -> None:
    """Show the version in the title of every page."""
    config.site_name = f"{config.site_name} {__version__}"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are not in docs/: copies of others, the notebook, and the reference of the commands."""
    for source, target in OUTSIDE.items():
        if source.endswith(".md"):
            text = (ROOT / source).read_text(encoding="utf-8")
            head = "---\nhide: [navigation]\n---\n" if target == "index.md" else ""  # one page: its tab is enough
            files.append(File.generated(config, target, content=head + text))
    text, pictures = render_notebook(ROOT / "docs/first_hour.ipynb")
    files.append(File.generated(config, "first_hour.md", content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "commands.md", content=render_commands()))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links that leave docs/, and indent lists as Python-Markdown reads them."""
    here = _repository_path(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups()
        path = os.path.normpath(here.parent / target)
        if not (ROOT / path).is_file():
            return match[0]  # an address, or a broken link, which mkdocs reports
        return f"{before}{_relative(_site_path(path, config, files), page.file.src_uri)}{anchor or ''}{after}"

    linked = re.sub(r'(\]\(|<img src=")([^)#:"\s]+)(#[^)"\s]*)?(\)|")', rewrite, markdown)
    return indent_lists(_unescape_pipes(linked))


def _repository_path(site_path: str) -> PurePosixPath:
    """The path in the repository of a page of the site."""
    return PurePosixPath(
        next((source for source, target in OUTSIDE.items() if target == site_path), f"docs/{site_path}")
    )


def _site_path(path: str, config: MkDocsConfig, files: Files) -> str:
    """The path on the site of a file of the repository, which is added to the site if it is not there."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    inside = path.removeprefix("docs/")
    if inside != path and not path.endswith(".py"):
        return inside
    target = f"files/{path}"
    if files.get_file_from_path(target) is None:
        files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
    return target


def _relative(target: str, page: str) -> str:
    return os.path.relpath(target, PurePosixPath(page).parent)


def _unescape_pipes(markdown: str) -> str:
    """Remove the backslash of a pipe in code in a table: GitHub needs it, and Python-Markdown would show it."""
    row = re.compile(r"^\|.*$", re.MULTILINE)
    return row.sub(lambda line: re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), line[0]), markdown)


def indent_lists(markdown: str) -> str:
    """Indent the paragraphs, tables and blocks inside list items by four columns, as Python-Markdown needs them.

    Args:
        markdown: text as GitHub reads it: indented as far as the text of the list item, by two or three columns.
    """
    lines, width, fenced = [], 0, False
    for line in markdown.splitlines():
        item = re.match(r"(?:[-*]|\d+\.) +", line)
        if fenced or (width == 0 and line.startswith("```")):
            fenced = not fenced if line.startswith("```") else fenced
        elif item:
            width = len(item[0])
        elif width and line.startswith(" " * width):
            line = "    " + line[width:]
        elif line:
            width = 0
            fenced = line.startswith("```")
        lines.append(line)
    return "\n".join(lines) + "\n"
