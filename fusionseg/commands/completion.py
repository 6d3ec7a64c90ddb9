"""`fusionseg completion`: a script for the shell that completes commands, options, names, keys and files.

shtab writes the script from the parsers. An argument has no mark for it: its metavar and its name say what it takes.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fusionseg.commands.base import Commands, Parser, add_command, subparsers
from fusionseg.config.reference import key_reference
from fusionseg.config.shipped.copies import shipped_scripts
from fusionseg.config.shipped.lookup import CLUSTER, CONFIG, KINDS, SWEEP
from fusionseg.utils.exit_status import DONE

SHELLS = ("bash", "zsh", "fish")
_FOLDERS = {"FOLDER", "out", "folder"}
_FILES = {"RUN", "FILE", "CONFIG", "PNG", "LABEL", "dataset", "image", "mask", "input", "sweep", "cluster"}
# shtab's function returns before the shell knows that no space follows "train.steps=".
_BASH_END = """
_fusionseg_complete() {
  _shtab_fusionseg "$@"
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]]; then compopt -o nospace 2>/dev/null; fi
  return 0
}
complete -o bashdefault -o default -F _fusionseg_complete fusionseg
"""


@dataclass(frozen=True)
class Candidates:
    """The words that an argument can begin with."""

    words: tuple[str, ...] = ()
    paths: str = ""
    """`files`, `folders`, or empty."""

    def as_complete(self, index: int) -> dict[str, object]:
        """The attribute `complete` of an argument, which shtab reads: functions of the shells and their text.

        Args:
            index: makes the names of the functions unique.
        """
        # shtab has bash treat the words as names of files if the name of the function has "file" in it. Bash would
        # write "train.steps\\=" then.
        keys = any(word.endswith("=") for word in self.words)
        name = f"_fusionseg_{index}{'' if keys or not self.paths else '_file'}"
        return {
            "bash": name,
            "zsh": name,
            "fish": f"({name})",
            "preamble": {"bash": self._bash(name, keys), "zsh": self._zsh(name), "fish": self._fish(name)},
        }

    def _bash(self, name: str, keys: bool) -> str:
        lines = [f'  compgen -W {shlex.quote(" ".join(self.words))} -- "$1"'] if self.words else []
        option = {"files": "-f", "folders": "-d -S /" if keys else "-d"}.get(self.paths)
        lines += [f'  compgen {option} -- "$1"'] if option else []
        return "\n".join([f"{name}() {{", *lines, "}"])

    def _zsh(self, name: str) -> str:
        keys = [word for word in self.words if word.endswith("=")]
        names = [word for word in self.words if not word.endswith("=")]
        lines = (
            ["  if compset -P '*='; then _files; return; fi", f"  compadd -S '' -- {shlex.join(keys)}"] if keys else []
        )
        lines += [f"  compadd -- {shlex.join(names)}"] if names else []
        lines += [{"files": "  _files", "folders": "  _files -/"}[self.paths]] if self.paths else []
        return "\n".join([f"{name}() {{", *lines, "}"])

    def _fish(self, name: str) -> str:
        lines = [f"  printf '%s\\n' {shlex.join(self.words)}"] if self.words else []
        function = {"files": "__fish_complete_path", "folders": "__fish_complete_directories"}.get(self.paths)
        lines += [f"  {function} (commandline -ct)"] if function else []
        return "\n".join([f"function {name}", *lines, "end"])


def add_completion(commands: Commands, program: Parser) -> None:
    """Add the command `completion`.

    Args:
        commands: the commands of the program.
        program: the parser with all commands, which the script completes.
    """
    parser = add_command(
        commands,
        "completion",
        "print a script for the shell, which completes commands, options, shipped names, keys and files",
        "fusionseg completion bash > ~/.local/share/bash-completion/completions/fusionseg\n"
        "  fusionseg completion zsh > ~/.zfunc/_fusionseg         # with fpath=(~/.zfunc $fpath) before compinit\n"
        "  fusionseg completion fish > ~/.config/fish/completions/fusionseg.fish",
        lambda arguments: _print_script(program, arguments.shell),
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def _print_script(program: Parser, shell: str) -> int:
    print(completion_script(program, shell))
    return DONE


def completion_script(program: Parser, shell: str) -> str:
    """Write the script of a shell.

    Args:
        program: the parser with all commands.
        shell: one of `SHELLS`.
    """
    import shtab

    known: dict[Candidates, int] = {}
    for action in _arguments(program):
        candidates = _candidates(action)
        if candidates != Candidates():
            action.complete = candidates.as_complete(known.setdefault(candidates, len(known)))  # type: ignore[attr-defined]
    script = shtab.complete(program, shell)
    return f"{script}{_BASH_END}" if shell == "bash" else script


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments and options of a program and of its commands."""
    yield from (action for action in parser._actions if action.choices is None and action.nargs != 0)
    for inner in subparsers(parser).values():
        yield from _arguments(inner)


def _candidates(action: argparse.Action) -> Candidates:
    """The words that an argument takes, by its metavar and its name."""
    shown = action.metavar if isinstance(action.metavar, str) else action.dest
    kinds = {action.dest, *shown.split("|")}
    words = _words(action.dest, shown)
    # A run may be an archive or a checkpoint. Beside keys bash quotes no names of files: folders alone are offered.
    if kinds & _FOLDERS or ("RUN" in kinds and words):
        return Candidates(words, "folders")
    return Candidates(words, "files" if kinds & _FILES or action.type is Path else "")


def _words(name: str, shown: str) -> tuple[str, ...]:
    """The words that an argument takes beside paths."""
    if name in ("sweep", "cluster"):
        return tuple((SWEEP if name == "sweep" else CLUSTER).names())
    if shown == "CONFIG|SWEEP":
        return (*CONFIG.names(), *SWEEP.names())
    if shown == "FILE|NAME":
        return tuple(CONFIG.names())
    if (name, shown) == ("name", "NAME"):  # fusionseg configs copy
        return tuple(sorted({*(each for kind in KINDS for each in kind.names()), *shipped_scripts()}))
    if (name, shown) in (("what", "NAME"), ("network", "NAME")):  # fusionseg models, fusionseg plan --network
        return _network_names()
    if "key.path=value" in shown:
        return _keys()
    if "data.KEY=value" in shown:
        return tuple(key for key in _keys() if key.startswith("data."))
    return ()


@cache
def _keys() -> tuple[str, ...]:
    """The keys of a configuration as the beginnings of overrides, such as `train.steps=`."""
    keys = {key.path for section in key_reference() for key in section.keys}
    return tuple(sorted(f"{key}=" for key in keys if "[" not in key))


def _network_names() -> tuple[str, ...]:
    """The networks that `model.name` can be, from the titles of the reference: torch is not needed for them."""
    titles = [section.title for section in key_reference() if section.title.startswith("model: ")]
    names = [name for title in titles for name in title.removeprefix("model: ").split(", ")]
    return tuple(sorted(name for name in names if name != "dotted path"))
