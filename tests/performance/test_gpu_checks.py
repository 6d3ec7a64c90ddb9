"""profiling/gpu_checks.sh: parts, their status, continuing; the section of the page; the wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

PROFILING = Path(__file__).parents[2] / "profiling"
MACHINE = {
    "device": "cpu", "gpu": None, "driver": None, "cuda": None, "cpus": 2, "processor": "P", "has_bf16": False,
    "torch": "2.11.0", "date": "2026-11-29", "versions": {"torch": "2.11.0"}, "installed": [],
}  # fmt: skip


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROFILING))
    import gpu_checks

    return gpu_checks


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROFILING))
    import wheels

    return wheels


def test_the_doctor_through_the_script(tmp_path: Path) -> None:
    """The only part that takes seconds. Another device needs another folder; an unknown part is refused."""
    environ = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(PROFILING / "gpu_checks.sh"), str(tmp_path / "out"), "--only"]
    done = subprocess.run([*command, "doctor", "--device", "cpu"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("doctor: passed, ")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| `doctor` " in table and "file system" in table and "| `swin_compiled` " in table
    assert (tmp_path / "out" / "results.tar.gz").stat().st_size > 500
    done = subprocess.run([*command, "docter"], env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no part 'docter' (expected some of doctor, resume" in done.stderr


def test_parts_are_independent_and_a_second_call_continues(
    checks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each part writes a line into `calls`. `second_try` fails once."""

    def part(name: str, code: str = "", **options: object) -> object:
        note = f"open({str(tmp_path / 'calls')!r}, 'a').write('{name} ')"
        command = [sys.executable, "-c", f"{note}\n{code}"]
        return checks.Part(name, f"about {name}", lambda setting: [command], **{"data": False, **options})

    flag = tmp_path / "flag"
    second = f"import os, sys\nif not os.path.exists({str(flag)!r}): open({str(flag)!r}, 'w'); sys.exit('no luck')"
    endless = checks.Part("endless", "about endless", lambda setting: [["sleep", "60"]], limit_s=0.5, data=False)
    parts = (
        part("second_try", second), endless, part("good", "print('a | table')"),
        part("no_result", problem=lambda setting: (setting.out / "missing.json").read_text()),
        part("of_gpus", on_cpu=False), part("half", precision="bf16"), part("of_nnunet", package="nnunetv2"),
    )  # fmt: skip
    for place in (checks, sys.modules["gpu_checks_table"]):
        monkeypatch.setattr(place, "PARTS", parts)
    monkeypatch.setattr(checks.Checks, "open_machine", lambda self, device: self.machine.update(MACHINE))
    out = tmp_path / "out"
    assert checks.main([str(out)]) == 1
    first = capsys.readouterr()
    log = out / "parts" / "second_try" / "messages.log"
    assert [line.split(",")[0] for line in first.out.splitlines()] == [
        f"second_try: failed (status 1: no luck; see {log})",
        "endless: failed (longer than 0.5 s)",
        "good: passed",
        f"no_result: failed ([Errno 2] No such file or directory: '{out / 'missing.json'}')",
        "of_gpus: skipped (needs a GPU)",
        "half: skipped (no bf16 on this CPU)",
        "of_nnunet: skipped (nnunetv2 is not installed; see --extra of profiling/wheels.py)",
    ]
    assert "call again to continue with: second_try endless no_result" in first.err
    state = json.loads((out / "status.json").read_text())
    state["parts"]["good"]["status"] = "interrupted"  # as if the call had been killed in this part
    (out / "status.json").write_text(json.dumps(state))
    assert checks.main([str(out)]) == 1
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["good", "of_gpus", "half", "of_nnunet", "second_try", "endless", "no_result"]
    assert (tmp_path / "calls").read_text().split() == [
        "second_try",
        "good",
        "no_result",
        "good",
        "second_try",
        "no_result",
    ]
    assert checks.main([str(out), "--only", "good", "second_try"]) == 0
    assert (out / "table.md").read_text().count("a | table") == 1
    assert checks.main([str(out), "--list"]) == 0
    assert "endless: failed (longer than 0.5 s)" in capsys.readouterr().out
    # With the time of the call over, nothing more begins, and what failed stays failed.
    calls = (tmp_path / "calls").read_text()
    assert checks.main([str(out), "--minutes", "0.001"]) == 1
    assert (tmp_path / "calls").read_text() == calls
    assert "second_try: passed" in capsys.readouterr().out


def test_every_part_has_its_commands(checks: ModuleType, tmp_path: Path) -> None:
    """At most eight minutes each, as the doctor first and the matrix last; a T4 has fp16 instead of bf16."""
    names = [part.name for part in checks.PARTS]
    assert names[:6] == ["doctor", "resume", "profile", "roofline", "step", "step_compiled"]
    assert len(set(names)) == len(names) and names[-1].startswith("matrix_")
    turing = checks.Setting(tmp_path, tmp_path / "data", True, "cuda", False, False, 20)
    assert "it has no result" in checks.PARTS[0].problem(turing)  # a doctor that ended with a traceback
    for part in checks.PARTS:
        assert part.expected_s <= part.limit_s <= 480
        words = [word for command in part.commands(turing) for word in command]
        assert "bf16" not in words or part.precision == "bf16"
        assert "train.precision=bf16" not in words or checks.not_possible(part, {**MACHINE, "device": "cuda"})
        programs = [word for word in words if word.endswith(".py")]
        assert all(Path(path).exists() for path in programs)


def test_the_section_replaces_the_one_of_the_page(checks: ModuleType, tmp_path: Path) -> None:
    table = sys.modules["gpu_checks_table"]
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## On a GPU\n\nold\n\n## Next\n\nkept\n")
    table.put_into(page, "## On a GPU\n\nnew\n")
    assert page.read_text() == "# Page\n\n## On a GPU\n\nnew\n\n## Next\n\nkept\n"


def wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> None:
    """Write a wheel with one module."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_only_what_is_missing_is_installed(wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and NumPy are never installed, nor what other platforms need, nor what is there in a version that fits."""
    folder, site = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    wheel(
        folder, "lacking", "1.2", ["also_lacking>=2", "numpy>=99", "argparse", "windows_only; sys_platform == 'win32'"]
    )
    wheel(folder, "also_lacking", "2.0")
    wheel(folder, "packaging", "999.0")
    monkeypatch.setattr(wheels, "required", lambda extras=(): ["torch>=99", "packaging>=1", "lacking>=1"])
    assert wheels.install(folder, site) == ["also-lacking 2.0", "lacking 1.2"]
    assert {path.name for path in site.glob("*.py")} == {"lacking.py", "also_lacking.py"}
    before = (site / "lacking.py").stat().st_mtime_ns
    wheels.install(folder, site)  # it has all already
    assert (site / "lacking.py").stat().st_mtime_ns == before
    (folder / "also_lacking-2.0-py3-none-any.whl").unlink()
    monkeypatch.setattr(wheels, "required", lambda extras=(): ["lacking>=1", "unknown_package"])
    with pytest.raises(wheels.UserError) as raised:
        wheels.install(folder, tmp_path / "other")
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["unknown-package", "also-lacking"]


def test_a_wheel_with_extras_is_taken_also_if_the_machine_has_the_package(
    wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip list` has versions only: without the wheel, what an extra requires would be missing."""
    registry, folder, have = tmp_path / "registry", tmp_path / "wheels", tmp_path / "list.txt"
    registry.mkdir()
    wheel(registry, "there", "1.0", ["of_there"])
    wheel(registry, "both", "3.0", ["of_the_extra; extra == 'http'", "of_another; extra == 'ftp'"])
    wheel(registry, "of_the_extra", "4.0")
    have.write_text("there 1.0\nboth 3.0\n")

    def download(requirement: str, into: Path, python: str) -> object:
        (path,) = registry.glob(f"{wheels._name(requirement).replace('-', '_')}-*.whl")
        return wheels.Wheel(Path(shutil.copy(path, into)))

    monkeypatch.setattr(wheels, "download", download)
    monkeypatch.setattr(wheels, "required", lambda extras=(): ["there", "both", "both[http]>=2"])
    assert wheels.make(folder, "3.12", have, []) == 0
    assert sorted(wheels.wheels_in(folder)) == ["both", "of-the-extra"]
