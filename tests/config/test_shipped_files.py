"""Configurations, sweeps and cluster profiles by name, from any folder; and copies of the shipped ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusionseg.cli import main
from fusionseg.cluster.profile import load_cluster
from fusionseg.cluster.sweep import load_sweep
from fusionseg.config import load_config
from fusionseg.config.data.augmentation_presets import PRESETS
from fusionseg.config.shipped.copies import copy_shipped, description, shipped_scripts
from fusionseg.config.shipped.lookup import CLUSTER, CONFIG, KINDS, RESOURCES, SWEEP, find_file
from fusionseg.utils.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = ["model={name: unet}", "data.patch=[32,32,32]"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(*words)
    return str(caught.value)


def test_a_name_is_the_shipped_file(elsewhere: Path) -> None:
    assert load_config("hippocampus_fusion_od") == load_config(ROOT / "configs/hippocampus_fusion_od.yaml")
    assert load_cluster("a100_node") == load_cluster(ROOT / "slurm/clusters/a100_node.yaml")
    by_name, by_path = load_sweep("table2"), load_sweep(ROOT / "configs/sweeps/table2.yaml")
    assert by_name.folder == by_path.folder == elsewhere / "runs/table2"
    assert by_name.runs == by_path.runs


def test_files_of_the_user_extend_shipped_ones_by_name() -> None:
    Path("mine").mkdir()
    Path("mine/run.yaml").write_text("extends: hippocampus_unet\nname: mine\n")
    Path("mine/sweep.yaml").write_text("name: seeds\nbase: hippocampus_unet\ngrid: {seed: [0, 1]}\n")
    shipped = load_config("hippocampus_unet")
    assert load_config("mine/run.yaml") == shipped.model_copy(update={"name": "mine"})
    assert [run.config.model for run in load_sweep("mine/sweep.yaml").runs] == [shipped.model] * 2


def test_files_of_the_user_come_before_shipped_ones() -> None:
    """A path, then NAME.yaml in the folder, then what is shipped."""
    Path("demo.yaml").write_text("extends: demo\nname: of_this_folder\n")  # the shipped one, not itself
    assert load_config("demo").name == load_config("demo.yaml").name == "of_this_folder"
    assert load_config("demo").model == load_config(ROOT / "configs/demo.yaml").model
    Path("demo").write_text("extends: base\nname: of_this_path\nmodel: {name: swin_unetr}\n")
    assert load_config("demo").name == "of_this_path"
    Path("demo").unlink()
    Path("demo").mkdir()  # the folder that `make demo` writes
    assert load_config("demo").name == "of_this_folder"


def test_names_of_extends_are_looked_up_beside_the_file_that_has_them() -> None:
    Path("mine").mkdir()
    Path("base.yaml").write_text("seed: 1\n")
    Path("mine/base.yaml").write_text("seed: 2\n")
    Path("mine/run.yaml").write_text("extends: [demo, base]\n")
    assert load_config("mine/run.yaml").seed == 2


def test_a_file_name_is_never_a_shipped_file() -> None:
    message = refusal("demo.yaml")
    assert "demo.yaml: there is no such configuration file" in message
    assert message.endswith("give its name alone, demo")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hippocampus_unte", ["hippocampus_unet", "fusionseg configs"]),
        (
            "configs/hippocampus_unet.yaml",
            ["nor a folder configs", "give its name alone, hippocampus_unet"],
        ),
        ("table2", ["a shipped sweep", "fusionseg submit table2"]),
        ("nothing_like_it", ["fusionseg configs"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(given: str, expected: list[str]) -> None:
    message = refusal(given)
    assert message.startswith(f"{given}: there is no such configuration file")
    assert all(text in message for text in expected)


def test_a_run_folder_is_no_configuration() -> None:
    Path("run").mkdir()
    assert "run: is a folder" in refusal("run")
    Path("run/config.yaml").touch()
    assert "run/config.yaml" in refusal("run")


def test_an_unknown_base_is_refused_with_its_place() -> None:
    Path("run.yaml").write_text("seed: 1\nextends: bsae\n")
    assert refusal("run.yaml").startswith("extends (run.yaml, line 2): bsae: there is no such configuration file")
    assert "base" in refusal("run.yaml")
    Path("sweep.yaml").write_text("name: s\nbase: demmo\n")
    with pytest.raises(UserError, match=r"base \(sweep\.yaml, line 2\): demmo: .*did you mean demo") as caught:
        load_sweep("sweep.yaml")
    assert len(caught.value.problems) == 1
    with pytest.raises(UserError, match=r"t44: there is no such cluster profile file.*did you mean t4"):
        load_cluster("t44")


def test_a_message_says_shipped_instead_of_where_the_package_is_installed() -> None:
    message = refusal("hippocampus_unet", ["data.patch=[48,64,50]", "optim.lr=1e-9", "schedule.min_lr=1e-8"])
    assert "optim.lr" in message and "(command line: data.patch=[48,64,50])" in message
    Path("run.yaml").write_text("extends: base\nmodel: {name: swin_unetr}\ntrain: {micro_batch: 5}\n")
    message = refusal("run.yaml")
    assert "train.global_batch (shipped configs/base.yaml, line 9)" in message
    assert str(RESOURCES) not in message


def test_the_shipped_files_are_those_of_the_repository() -> None:
    for folder in ("configs", "slurm", "launch"):
        assert (RESOURCES / folder).resolve() == ROOT / folder


@pytest.mark.parametrize("name", CONFIG.names())
def test_a_copy_of_a_configuration_is_the_same_configuration(name: str, elsewhere: Path) -> None:
    copy = copy_shipped(name, Path("new/folder"))
    assert copy == Path(f"new/folder/{name}.yaml")
    overrides = SMALL if name in ("base", "fine_tuning") else []  # these two name no network
    assert load_config(copy, overrides) == load_config(name, overrides)


@pytest.mark.parametrize("name", SWEEP.names())
def test_a_copy_of_a_sweep_is_the_same_sweep(name: str) -> None:
    assert load_sweep(copy_shipped(name, Path("new"))).runs == load_sweep(name).runs


def test_copies_of_profiles_and_scripts() -> None:
    for name in CLUSTER.names():
        assert load_cluster(copy_shipped(name, Path())) == load_cluster(CLUSTER.shipped(name))
    for name, path in shipped_scripts().items():
        copy = copy_shipped(name, Path("scripts"))
        assert copy.read_bytes() == path.read_bytes()
        assert os.access(copy, os.X_OK) == os.access(path, os.X_OK)


def test_a_copy_replaces_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("demo.yaml").write_text("mine\n")
    assert main(["configs", "copy", "demo"]) == 2
    assert "demo.yaml: exists already" in capsys.readouterr().err
    assert Path("demo.yaml").read_text() == "mine\n"
    assert main(["configs", "copy", "demo", "elsewhere"]) == 0
    assert load_config("elsewhere/demo.yaml") == load_config(CONFIG.shipped("demo"))
    assert main(["configs", "copy", "demmo"]) == 2
    assert "did you mean demo" in capsys.readouterr().err


def test_the_list_has_every_file_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    names = [*(name for kind in KINDS for name in kind.names()), *PRESETS, *shipped_scripts()]
    assert [name for name, _ in lines] == names
    assert dict(lines)["sarcoma_pretrain"] == description(CONFIG.shipped("sarcoma_pretrain")) != ""
    assert dict(lines)["nnunet"] == PRESETS["nnunet"].about


def test_the_description_is_the_first_sentence(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("# Two steps of A. Dhar's recipe,\n# on a CPU. Slow.\nseed: 0\n# More.\n")
    assert description(file) == "Two steps of A. Dhar's recipe, on a CPU"
    file.write_text("seed: 0\n")
    assert description(file) == ""


def test_a_pipe_is_a_file() -> None:
    """The shell's --config <(command)."""
    reading, writing = os.pipe()
    os.write(writing, b"extends: demo\nname: piped\n")
    os.close(writing)
    assert find_file(CONFIG, f"/dev/fd/{reading}") == Path(f"/dev/fd/{reading}")
    os.close(reading)
