"""Code that a run folder from elsewhere names: it is not imported before the user has allowed it."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pty
import re
import select
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

import fusionseg
from fusionseg import cli
from fusionseg.config import RunConfig, dump_config, validate
from fusionseg.runs.run_config import plain_config, refuse_other_config
from fusionseg.runs.trust.consent import TRUST, is_trusting, trusting
from fusionseg.runs.trust.known_code import record_folder
from fusionseg.runs.trust.named_code import named_code
from fusionseg.training.start import train
from fusionseg.utils.errors import UserError

MODULE = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
import torch

class Net(torch.nn.Conv3d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)
"""


@pytest.fixture(scope="module")
def foreign(
    balls: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run of another user with a network of its own, and the mark that the import of the network leaves."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "their_nets.py").write_text(MODULE)
    plain = yaml.safe_load(dump_config(tiny_config(balls, folder, train={"steps": 1}, validate={"every": 1})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "their_home"))
        patch.setattr("fusionseg.runs.trust.known_code._here", {})
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(folder)
        train(validate({**plain, "model": {"name": "their_nets:Net"}}))
    del sys.modules["their_nets"]
    (folder / "imported").unlink()
    return folder / "tiny", folder / "imported"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test, and a working directory without modules."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("fusionseg.runs.trust.known_code._here", {})
    monkeypatch.setattr("fusionseg.runs.trust.consent._answered", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    values = np.random.default_rng(0).normal(100, 10, (18, 18, 18)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), "scan.nii.gz")
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def forget_modules() -> Any:
    yield
    for name in ("their_nets", "my_nets"):
        sys.modules.pop(name, None)


def test_no_command_imports_it_without_a_word(foreign: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, imported = foreign
    weights = str(run / "checkpoints/last.pt")
    for words in (
        ["predict", str(run), "-i", "scan.nii.gz", "-o", "masks"],
        ["predict", weights, "-i", "scan.nii.gz", "-o", "masks"],
        ["evaluate", str(run)],
        ["train", "--branch", str(run), "name=mine", "train.steps=2"],
        ["train", "--config", "demo", "--branch", str(run), "name=mine", "train.steps=2", "--dry-run"],
        ["export", str(run), "-o", "model"],
        ["export", str(run), "--format", "fseg", "-o", "it.fseg"],
    ):
        assert cli.main(words) == 2, words
        error = capsys.readouterr().err
        file = run.parent / "their_nets.py"
        assert f"model.name: their_nets:Net, from {file}" in error and "--trust" in error and "trust=True" in error
        assert f"{TRUST}=their_nets:Net" in error
    for words in (["compare", str(run)], ["report", str(run)], ["card", str(run)], ["status", str(run)]):
        assert cli.main(words) == 0, words  # these need the settings alone
    assert plain_config(run)["model"]["name"] == "their_nets:Net"
    for call in (fusionseg.load_run, fusionseg.evaluate, lambda path: fusionseg.predict(path, "scan.nii.gz")):
        with pytest.raises(UserError, match="their_nets:Net, from"):
            call(run)
    assert not imported.exists() and not Path("masks").exists() and not Path("model").exists()


def test_the_option_allows_it_once_for_this_file(
    foreign: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(foreign[0].parent, folder := tmp_path / "copy")
    state = torch.load(folder / "tiny/checkpoints/last.pt", weights_only=True)
    for config in (state["config"], plain := plain_config(folder / "tiny")):
        config["model"]["found_in"] = str(folder)
    torch.save(state, folder / "tiny/checkpoints/last.pt")
    (folder / "tiny/config.yaml").write_text(yaml.safe_dump(plain))
    predict = ["predict", str(folder / "tiny"), "--checkpoint", "last", "-i", "scan.nii.gz", "-o"]
    assert cli.main([*predict, "masks", "--trust"]) == 0 and (folder / "imported").exists()
    assert cli.main([*predict, "again"]) == 0
    with (folder / "their_nets.py").open("a") as file:
        file.write("import os\n")
    assert cli.main([*predict, "third"]) == 2 and not Path("third").exists()
    assert "their_nets.py" in capsys.readouterr().err
    assert fusionseg.load_run(folder / "tiny", trust=True).network("last")
    assert len(list(record_folder().iterdir())) == 1


def test_a_run_of_the_user_is_never_asked_about(
    balls: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    Path("my_nets.py").write_text(MODULE)
    raw = yaml.safe_load(dump_config(tiny_config(balls, tmp_path, train={"steps": 1}, validate={"every": 1})))
    config = validate({**raw, "model": {"name": "my_nets:Net"}})
    train(config)
    with Path("my_nets.py").open("a") as file:
        file.write("# a change of the user's own\n")
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    assert fusionseg.load_run(tmp_path / "tiny").network("last")
    # The same name in another folder is other code.
    (tmp_path / "elsewhere/my_nets.py").write_text(MODULE)
    plain = yaml.safe_load((tmp_path / "tiny/config.yaml").read_text())
    plain["model"]["found_in"] = str(tmp_path / "elsewhere")
    (tmp_path / "tiny/config.yaml").write_text(yaml.safe_dump(plain))
    sys.modules.pop("my_nets")
    with pytest.raises(UserError, match=r"elsewhere/my_nets\.py"):
        fusionseg.load_run(tmp_path / "tiny")
    assert not (tmp_path / "elsewhere/imported").exists()


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 2), ("", 2)])
def test_the_question_at_a_terminal(
    foreign: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    run, imported = foreign
    terminal, other = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    with os.fdopen(other, "r+b", buffering=0) as file:
        both = io.TextIOWrapper(file, write_through=True)
        monkeypatch.setattr(sys, "stdin", both)
        monkeypatch.setattr(sys, "stderr", both)
        assert cli.main(["predict", str(run), "-i", "scan.nii.gz", "-o", "masks"]) == status
        shown = b""
        while b"[y/N]" not in shown:
            assert select.select([terminal], [], [], 10)[0], shown
            shown += os.read(terminal, 65536)
        both.detach()
    os.close(terminal)
    assert b"Import and run it? [y/N]" in shown and b"their_nets.py" in shown
    assert imported.exists() == (answer == "y") == any(Path.cwd().glob("masks/*"))
    imported.unlink(missing_ok=True)


def parts(**sections: Any) -> Mapping[str, Any]:
    return {"data": {"root": "/x"}, **sections}


def test_what_counts_as_code_of_others(tmp_path: Path) -> None:
    from fusionseg.runs.trust.foreign_code import unknown_code

    def unknown(**sections: Any) -> list[str]:
        return [code.name for code in unknown_code(parts(**sections))]

    assert not unknown(model={"name": "monai.networks.nets:SegResNet"}, optim={"name": "torch.optim:SGD"})
    assert not unknown(loss={"name": "nowhere:Loss"}, notes=["12:30", "tumour:core"])  # there is no such module
    # Found where the module imports it, and classes that open what their arguments name.
    for name in ("fusionseg.cluster.local_evaluation:Popen", "fusionseg.api.runs:Run", "torch.nn.modules.module:Any",
                 "monai.losses:PerceptualLoss", "monai.networks.nets:HoVerNet", "monai.transforms:Lambda"):  # fmt: skip
        assert unknown(model={"name": name, "args": {}}) == [name]
    for name in ("os:system", "torch.hub:load", "monai.bundle:run", "monai.transforms:LoadImaged", "sys:exit",
                 "torch.nn:functional.torch.hub.load", "fusionseg.utils.files:write_text"):  # fmt: skip
        assert unknown(model={"name": name, "args": {}}) == [name]
    assert unknown(metrics={"os:system": {}}) == unknown(loss={"args": {"it": ["os:system"]}}) == ["os:system"]
    # A file of the attacker's in front of the library, beside a module that is the user's own, or in a parent.
    (tmp_path / "in/torch").mkdir(parents=True)
    (tmp_path / "in/torch/__init__.py").write_text("")
    (tmp_path / "in/parent").mkdir()
    (tmp_path / "in/parent/__init__.py").write_text("raise SystemExit")
    found = {"found_in": str(tmp_path / "in")}
    assert unknown(optim={"name": "torch.optim:SGD", **found}) == ["torch.optim:SGD"]
    assert unknown(model={"name": "parent.missing:Net", **found}) == ["parent.missing:Net"]
    (code,) = named_code(parts(model={"name": "parent.missing:Net", **found}))
    assert code.file == str(tmp_path / "in/parent/__init__.py") and "parent" not in sys.modules


def test_no_allowed_class_of_a_library_runs_what_its_arguments_name() -> None:
    """A new version of MONAI may have further classes: their sources are searched."""
    from fusionseg.runs.trust.foreign_code import unknown_code

    opens = re.compile(
        r"pickle\.load|torch\.load|torch\.hub\.load|set_dir|from_pretrained|from_url|\blocate\(|subprocess\.\w+\(|\bexec\("
        r"|import_module|__import__|np\.load|\bopen\("
    )
    texts: dict[str, list[str]] = {}

    @cache
    def words_in(part: type) -> list[str]:
        """Those in the source of a class. `inspect.getsource` would parse the whole file for each."""
        file = inspect.getsourcefile(part)
        assert file is not None
        if file not in texts:
            texts[file] = re.split(r"^(?=class |def |@)", Path(file).read_text(), flags=re.MULTILINE)
        source = [text for text in texts[file] if re.match(rf"class {part.__name__}\b", text)]
        assert source, part
        return opens.findall("".join(source))

    looked_at = 0
    for module in ("monai.networks.nets", "monai.losses", "monai.metrics", "monai.transforms"):
        # One name for each class: MONAI's transforms have four.
        classes = {part: name for name, part in inspect.getmembers(importlib.import_module(module), inspect.isclass)}
        for part, name in classes.items():
            if not unknown_code(parts(model={"name": f"{module}:{name}"})):
                own = [each for each in part.__mro__ if each.__module__.startswith("monai")]
                found = {word for each in own for word in words_in(each)}
                assert not found, (name, found)
                looked_at += 1
    assert looked_at > 250


def test_the_file_that_is_shown_is_the_one_that_runs(tmp_path: Path) -> None:
    """Python imports a folder of the same name in place of the file."""
    from fusionseg.runs.trust.foreign_code import unknown_code
    from fusionseg.runs.trust.known_code import remember_allowed

    config = parts(model={"name": "nets.py:Net", "found_in": str(tmp_path)})
    (tmp_path / "nets.py").write_text("")
    remember_allowed(unknown_code(config))
    assert not unknown_code(config)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/__init__.py").write_text("")
    (code,) = unknown_code(config)
    assert code.files == [str(tmp_path / "nets/__init__.py")]
    # A parent's file belongs to what was allowed.
    inner = parts(model={"name": "nets.inner:Net", "found_in": str(tmp_path)})
    (tmp_path / "nets/inner.py").write_text("")
    remember_allowed(unknown_code(inner))
    assert not unknown_code(inner)
    (tmp_path / "nets/__init__.py").write_text("import os")
    assert unknown_code(inner)


def test_the_word_of_one_thread_is_not_that_of_another() -> None:
    """A server opens runs of several people, and the bodies overlap."""
    began, may_end = threading.Event(), threading.Event()

    def trusts() -> None:
        with trusting(True):
            began.set()
            may_end.wait(20)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(trusts)
        assert began.wait(20)
        with trusting(False):
            assert not is_trusting()
            may_end.set()
            other.result()
        assert not is_trusting()


def test_a_run_with_own_parts_is_continued_where_nothing_is_recorded(tmp_path: Path) -> None:
    """The present configuration of the user names the same code; a key that is newer than the run has its default."""
    Path("my_nets.py").write_text(MODULE)
    config = validate({"name": "it", "data": {"root": str(tmp_path)}, "model": {"name": "my_nets:Net"}})
    before = config.to_dict()
    del before["loss"]["include_background"]
    refuse_other_config(tmp_path, before, config)


def test_a_helper_beside_the_users_module_is_not_smuggled_in(tmp_path: Path) -> None:
    from fusionseg.runs.trust.foreign_code import unknown_code
    from fusionseg.runs.trust.known_code import remember_own

    Path("mine.py").write_text("import helper\n")
    remember_own(parts(model={"name": "mine:Net"}), write=True)
    assert not unknown_code(parts(model={"name": "mine:Net"}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/helper.py").write_text("")
    assert unknown_code(parts(model={"name": "mine:Net", "found_in": str(tmp_path / "in")}))


def test_a_home_that_cannot_be_written_is_no_error(
    foreign: tuple[Path, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("a file in place of the folder")
    assert fusionseg.load_run(foreign[0], trust=True).network()
    assert fusionseg.load_run(foreign[0])  # this process remembers the word
    monkeypatch.setattr("fusionseg.runs.trust.known_code._here", {})
    monkeypatch.setenv(TRUST, "their_nets:Net")
    assert fusionseg.load_run(foreign[0])
    foreign[1].unlink(missing_ok=True)
