"""Blocks of code and commands of the documentation, for the tests that read them."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in some languages, also those in lists."""
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, found, text in fenced if found in languages]


def examples() -> list[tuple[str, list[str]]]:
    """Return (page, words) of every command in a block of the shell or without a language, without comments."""
    found = []
    for page in PAGES:
        for block in blocks(page, "", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and "..." not in words:
                    found.append((page.name, words))
    return found


def program_words(words: list[str]) -> list[str] | None:
    """The words after `fusionseg` of a command line, without pipes and redirections; None for another program."""
    end = next((n for n, word in enumerate(words) if word in ("|", "&&", ";", "&") or word[0] in "<>"), len(words))
    words = words[:end]
    if "-m" in words:
        module, *rest = words[words.index("-m") + 1 :]
        if module in ("fusionseg.train", "fusionseg.pretrain"):
            return [module.partition(".")[2], *rest]
        return rest if module == "fusionseg" else None
    if words[:2] in (["git", "clone"], ["docker", "build"], ["apptainer", "build"]):
        return None
    program = next((n for n, word in enumerate(words) if word in ("fusionseg", "fusionseg.sif")), None)
    if program is None:
        return None
    rest = words[program + 1 :]
    return [*rest[1:2], "--help"] if rest[:1] == ["help"] else rest
