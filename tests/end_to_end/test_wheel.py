"""The package as `pip install` gives it: the commands of the README in an empty folder, without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "slurm", "launch")
# A network and volumes of seconds; all else is what the shipped configuration says.
TINY = (
    "device=cpu", "data.folds=3", "data.patch=[32,32,32]", "model={name: unet, channels: [4, 8]}", "train.steps=4",
    "schedule.warmup=1", "train.global_batch=2", "train.threads=1", "validate.every=4", "log.tensorboard=false",
    "data.workers=1",
)  # fmt: skip


def pip(command: str, *words: str | Path) -> None:
    """Run pip without the network; the packages that fusionseg needs are those of this environment."""
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    done = subprocess.run([sys.executable, "-m", "pip", command, *options, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files: a build leaves its folders there."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fusionseg", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from that copy."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


class Installed:
    """The installed wheel, and an empty folder to work in."""

    def __init__(self, packages: Path, folder: Path) -> None:
        self.folder = folder
        # Before the environment's own packages, among which the repository may be installed.
        self.environ = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}

    def run(self, *words: str, status: int = 0) -> str:
        """Run `python -m WORDS`; its output."""
        return self._start(["-m", *words], status)

    def python(self, program: str) -> str:
        """Run a program text; its output."""
        return self._start(["-c", program], 0)

    def _start(self, words: list[str], status: int) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self.environ, capture_output=True, text=True
        )
        assert done.returncode == status, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    packages = tmp_path_factory.mktemp("packages")
    pip("install", "--target", packages, wheel)
    program = Installed(packages, tmp_path_factory.mktemp("empty"))
    found = program.python("import fusionseg; print(fusionseg.__file__)")
    assert Path(found.strip()).is_relative_to(packages)
    program.run("fusionseg", "synth", "data", "--cases", "3", "--size", "48", "--workers", "1")
    program.run("fusionseg.train", "--config", "demo", "data.root=data", *TINY)
    return program


def shipped_files() -> dict[str, bytes]:
    """The files of the top-level folders by their place in the package."""
    return {
        f"fusionseg/resources/{path.relative_to(ROOT)}": path.read_bytes()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }


def test_the_wheel_has_the_files_of_the_repository(wheel: Path) -> None:
    """What git would add, byte for byte: nothing is left out, and nothing but the package is installed."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for suffix in (".py", ".cpp")
        for path in ROOT.glob(f"fusionseg/**/*{suffix}")
        if path.is_file()
    }
    files = shipped_files()
    assert len(files) > 25
    assert packed == modules | files | {"fusionseg/py.typed": b""}


def test_the_sdist_has_them_as_files_too(source: Path, tmp_path: Path) -> None:
    """A wheel can be built of it: the links to the top-level folders have become files."""
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {
            entry.name.partition("/")[2]: archive.extractfile(entry).read() for entry in archive if entry.isfile()
        }
    assert packed.items() >= shipped_files().items()


def test_a_training_by_the_name_of_a_configuration(installed: Installed) -> None:
    run = installed.folder / "runs/demo"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["kind"] == "end" and records[-1]["status"] == "completed"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["intensity"]["clip"] == [-200, 500]


def test_evaluate_and_predict(installed: Installed) -> None:
    """One process for both commands: half of the time of each is its imports."""
    commands = (
        ["evaluate", "runs/demo"],
        ["predict", "runs/demo", "--input", "data/imagesTr", "--output", "masks"],
    )
    installed.python(f"from fusionseg.cli import main\nassert [main(words) for words in {commands}] == [0, 0]")
    assert (installed.folder / "runs/demo/evaluation/best_and_worst.png").is_file()
    masks = sorted((installed.folder / "masks").glob("*.nii.gz"))
    assert len(masks) == 3
    assert np.asarray(nibabel.load(masks[0]).dataobj).shape == (48, 48, 48)


def test_a_sweep_on_a_shipped_cluster_profile(installed: Installed) -> None:
    sweep = "name: seeds\nbase: demo\ngrid: {seed: [1]}\n"
    (installed.folder / "seeds.yaml").write_text(sweep)
    local = ("--cluster", "local", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1")
    installed.run("fusionseg", "submit", "seeds.yaml", *local, "data.root=data", *TINY)
    records = (installed.folder / "runs/seeds/seed1/metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["status"] == "completed"


def test_shipped_files_are_listed_copied_and_suggested(installed: Installed) -> None:
    assert "hippocampus_unet" in installed.run("fusionseg", "configs")
    installed.run("fusionseg", "configs", "copy", "one_node.sh", "mine")
    assert os.access(installed.folder / "mine/one_node.sh", os.X_OK)
    unknown = installed.run("fusionseg", "submit", "tabel2", "--cluster", "local", status=2)
    assert "did you mean table2" in unknown
