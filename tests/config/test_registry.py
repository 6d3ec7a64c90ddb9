"""Registries and parts from outside: every way to name one wrongly is told with the name, the place and the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fusionseg.config.outside import PartError, import_part, source_of
from fusionseg.config.outside_part import OutsidePart, argument_problems
from fusionseg.config.registry import Registry
from fusionseg.utils.errors import UserError

HOME = """
from fusionseg.config.registry import Registry
import registry_under_test
@registry_under_test.shapes.register("{name}", "{name}_twin")
class Part: ...
"""


@pytest.fixture
def folder(user_folder: Path) -> Path:
    """The working directory of a user."""
    return user_folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_home_is_imported_at_the_first_lookup_module_by_module(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("registry_under_test")
    module.shapes = shapes = Registry("shape", "shape.name", "home_of_shapes")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "registry_under_test", module)
    write(folder, "home_of_shapes/__init__.py", "")
    for name in ("cone", "ball"):
        write(folder, f"home_of_shapes/{name}.py", HOME.format(name=name))
    sys.path.insert(0, str(folder))
    assert "home_of_shapes" not in sys.modules
    assert shapes.names() == ["ball", "ball_twin", "cone", "cone_twin"]
    assert shapes.lookup("cone") is shapes.lookup("cone_twin") is sys.modules["home_of_shapes.cone"].Part
    with pytest.raises(UserError, match=r"^shape\.name: there is no shape 'bal'; did you mean ball\? Valid: ball, "):
        shapes.lookup("bal")
    with pytest.raises(UserError, match=r"^shapes\.0: there is no shape 'a\.b\.C'.*write a\.b:C\)"):
        shapes.lookup("a.b.C", key="shapes.0")
    with pytest.raises(ValueError, match="'ball'"):
        shapes.register("ball")(object())


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (None, "no_such_pkg.nets:Net", "no module no_such_pkg (looked in {folder}"),
        ("", "own.nets:Net", "no module own.nets (looked in {folder}"),
        ("class Net: ...", "own:Nett", "module own ({folder}/own.py) has no 'Nett'; did you mean Net? Valid: Net"),
        ("Net = 3", "own:Net", "own:Net cannot be called (expected a class or a function, got int)"),
        ("import os\n\nx = 1 / 0\n", "own:Net", "{folder}/own.py, line 3: ZeroDivisionError: division by zero"),
        ("def f(:\n", "own:Net", "{folder}/own.py, line 1: SyntaxError: "),
        ("import no_such_dependency", "own:Net", "{folder}/own.py, line 1: ModuleNotFoundError: No module named 'no_s"),
        ("import json\n\nx = json.loads('{')", "own:Net", "{folder}/own.py, line 3: JSONDecodeError: "),
        ("raise SystemExit(3)", "own:Net", "{folder}/own.py, line 1: SystemExit: 3"),
        ("", "own:", "'own:' is not a path to a part (expected package.module:Attribute)"),
        ("", "my own:Net", "'my own' is not the name of a module"),
        (None, "./gone.py:Net", "there is no file {folder}/gone.py"),
    ],
)
def test_a_wrong_path_is_told_what_is_wrong_with_it(folder: Path, text: str | None, name: str, expected: str) -> None:
    if text is not None:
        write(folder, "own.py", text)
    with pytest.raises(PartError) as caught:
        import_part(name)
    assert expected.format(folder=folder) in str(caught.value)


def test_a_module_is_found_in_the_working_directory_and_does_not_hide_installed_ones(folder: Path) -> None:
    write(folder, "own/__init__.py", "")
    write(folder, "own/nets.py", "class Net:\n    class Inner: ...\n")
    write(folder, "single.py", "def net(): ...")
    assert import_part("own.nets:Net").__name__ == "Net"
    assert import_part("own.nets:Net.Inner").__name__ == "Inner"
    assert import_part("./single.py:net") is import_part("single:net")
    assert sys.path[-1] == str(folder)


def test_the_folder_that_a_run_has_recorded_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        write(folder, f"{name}/own.py", f"def net(): return {name!r}")
    monkeypatch.chdir(folder / "second")
    sys.path.insert(0, str(folder / "second"))  # as `python -m` does
    assert import_part("own:net", str(folder / "first"))() == "first"
    with pytest.raises(PartError, match=r"two modules are called own: .*first.*second"):
        import_part("own:net", str(folder / "second"))
    write(folder, "second/moved.py", "def net(): return 'moved'")
    assert import_part("moved:net", str(folder / "gone"))() == "moved"


def test_the_source_is_the_version_of_a_distribution_or_the_hash_of_the_file(folder: Path) -> None:
    import yaml

    assert source_of("yaml:safe_load").version.lower() == f"pyyaml {yaml.__version__}"
    assert source_of("yaml:safe_load").found_in is None
    path = write(folder, "own/nets.py", "class Net: ...")
    write(folder, "own/__init__.py", "from own.nets import Net")
    before = source_of("own:Net")
    assert before.version.startswith("sha256:") and before.found_in == str(folder)
    path.write_text("class Net:\n    width = 3\n")  # not the file that is named, but the one that defines it
    assert source_of("own:Net").version != before.version


def test_the_section_records_where_it_was_found_and_names_wrong_arguments(folder: Path) -> None:
    write(folder, "own.py", "class Net:\n    def __init__(self, width, depth=2): ...\n")
    section = OutsidePart(name="own:Net", args={"width": 8})
    assert section.found_in == str(folder) and section.version == section.source.version
    assert OutsidePart.model_validate({**section.model_dump(), "version": "sha256:0"}).version == "sha256:0"
    with pytest.raises(ValidationError) as caught:
        OutsidePart(name="own:Net", args={"widht": 8})
    (problem,) = caught.value.errors()
    assert str(problem["ctx"]["error"]).split("\n") == [
        "args.widht: is no argument of Net; did you mean width? Valid: width, depth",
        "args: Net needs width; add it",
    ]
    assert argument_problems(section.part, {"width": 8}, ["width"]) == [".width: is supplied by fusionseg; remove it"]


def test_the_registry_is_light() -> None:
    code = "import sys, fusionseg.config.registry; assert not {'torch', 'monai', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
