"""Shell completion: the scripts complete in real shells."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import fusionseg.cli
from fusionseg.cli import build_parser
from fusionseg.commands.completion import completion_script

WORDS = [
    ("fusionseg tra", "train"),
    ("fusionseg train --dry", "--dry-run"),
    ("fusionseg train --config hippocampus_r", "hippocampus_resenc"),
    ("fusionseg train --config my", "my.yaml"),
    ("fusionseg train --config demo train.glob", "train.global_batch="),
    ("fusionseg check data data.fore", "data.foreground="),
    ("fusionseg submit hippocampus_f", "hippocampus_folds"),
    ("fusionseg table table2 --cluster t", "t4"),
    ("fusionseg predict runs/f", "runs/first"),
    ("fusionseg predict mo", "model.fseg"),
    ("fusionseg plan data --network swin_fusion_f", "swin_fusion_full"),
    ("fusionseg evaluate runs/f", "runs/first"),
    ("fusionseg predict runs/first -i sca", "scan.nii.gz"),
    ("fusionseg export runs/first --format on", "onnx"),
    ("fusionseg configs copy hippocampus_re", "hippocampus_resenc"),
    ("fusionseg models swin_fusion_f", "swin_fusion_full"),
    ("fusionseg completion z", "zsh"),
]
"""Command lines, and the only word that can follow."""


def needs(shell: str) -> pytest.MarkDecorator:
    """Skip a test without a shell, unless CI requires it."""
    missing = shutil.which(shell) is None and shell not in os.environ.get("FUSIONSEG_REQUIRE", "").split()
    return pytest.mark.skipif(missing, reason=f"needs {shell}")


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: completion_script(build_parser(), shell) for shell in ("bash", "zsh", "fish")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str]) -> Path:
    """A working directory with a configuration, a scan, a run, an archive, and the script of each shell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    for name in ("my.yaml", "scan.nii.gz", "model.fseg"):
        (tmp_path / name).touch()
    for shell, text in scripts.items():
        (tmp_path / f"script.{shell}").write_text(text)
    return tmp_path


def output_of(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_completes_every_kind_of_word(folder: Path) -> None:
    lines = ["source script.bash"]
    for line, _ in WORDS:
        words = shlex.split(line)
        lines += [f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _fusionseg_complete"]
        lines += ['echo "${COMPREPLY[*]}"']
    found = output_of("bash", "--norc", "-c", "\n".join(lines))
    assert [word.rstrip("/") for word in found] == [word for _, word in WORDS]


def test_bash_completes_as_one_types(folder: Path) -> None:
    """In a terminal: no space after a key, a path after it, a space after a name."""
    terminal, other = os.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb", "PS1": "asks> "},
    )

    def read_until(text: str) -> str:
        found, end = "", time.monotonic() + 30
        while text not in found and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                found += os.read(terminal, 65536).decode()
        return found

    try:
        os.write(terminal, b"source script.bash; echo re''ady\n")
        read_until("ready\r\nasks> ")  # before it, the terminal echoes what is typed, and nobody completes it
        os.write(terminal, b"fusionseg train --config hippocampus_re\tdata.ro\tru\tfi\t#")
        assert "--config hippocampus_resenc data.root=runs/first/#" in read_until("#")
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)
        os.close(other)


@needs("fish")
def test_fish_completes_every_kind_of_word(folder: Path) -> None:
    lines = ["source script.fish"]
    for line, _ in WORDS:
        lines += [f"complete -C '{line}' | string split -f1 \\t | string trim -r -c /", "echo ."]
    found = "\n".join(output_of("fish", "--no-config", "-c", "\n".join(lines)))
    assert found.split("\n.")[:-1] == [f"{'' if n == 0 else chr(10)}{word}" for n, (_, word) in enumerate(WORDS)]


@needs("zsh")
def test_the_script_of_zsh_has_no_error(folder: Path) -> None:
    assert output_of("zsh", "-n", "script.zsh") == []


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert fusionseg.cli.main(["completion", "bash"]) == 0
    assert "complete -o bashdefault -o default -F _fusionseg_complete fusionseg" in capsys.readouterr().out
