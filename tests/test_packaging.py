"""Files about the package: the citation, the changelog, and the definitions of images, without building them."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from documented_commands import program_words

from fusionseg.cli import build_parser
from fusionseg.commands.base import parse
from fusionseg.utils.version import __version__

ROOT = Path(__file__).parents[1]
CONTAINER = ROOT / "launch/container"
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
# What the test of the wheel (tests/end_to_end/test_wheel.py) builds from, and the versions.
PACKAGE = {"README.md", "LICENSE", "setup.cfg", "pyproject.toml", "fusionseg", "configs", "slurm", "launch"}


def test_the_citation_has_the_keys_of_its_schema_and_the_facts_of_the_package() -> None:
    """Keys of the Citation File Format 1.2.0 (schema.json)."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found.keys() >= {"cff-version", "message", "title", "authors"}
    assert not found.keys() - {
        *("abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords"),
        *("license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact"),
        *("repository-code", "title", "type", "url", "version"),
    }
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert found["version"] == __version__
    assert found["license"] == SETUP["metadata"]["license"]
    assert ", ".join(found["keywords"]) == SETUP["metadata"]["keywords"]
    people = {"family-names", "given-names", "name", "orcid", "affiliation", "email", "website", "alias"}
    for author in [*found["authors"], *(each for source in found["references"] for each in source["authors"])]:
        assert author.keys() <= people and author.keys() & {"name", "family-names"}
    for source in found["references"]:
        assert source.keys() >= {"type", "title", "authors"} and isinstance(source["year"], int)


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", title) for title in versions[1:])
    for part in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (.*)$", part, re.MULTILINE)
        assert kinds and len(set(kinds)) == len(kinds)
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    released = [title.partition("]")[0].strip("[") for title in versions[1:]]
    assert __version__ in released or __version__ in text.partition("## [Unreleased]")[2]


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its text, without comments."""
    text = re.sub(r"^#.*\n", "", (CONTAINER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.replace("\\\n", " ").splitlines())]


def sections() -> dict[str, list[str]]:
    """The lines of each section of the Apptainer definition; the header is the section of an empty name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in (CONTAINER / "apptainer.def").read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
        elif line.strip() and not line.startswith("#"):
            found.setdefault(name, []).append(line.strip())
    return found


def installed_with() -> str:
    return (CONTAINER / "install.sh").read_text(encoding="utf-8")


def test_both_images_have_the_files_of_the_package_in_the_same_places() -> None:
    docker: dict[str, str] = {}
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = rest.split()
            docker |= {one: f"{target}{one}" if target.endswith("/") else target for one in sources}
    apptainer = {one: f"{target}{one}" for one, target in map(str.split, sections()["files"])}
    assert docker == apptainer == {name: f"/opt/fusionseg/{name}" for name in PACKAGE | {"constraints.txt"}}
    assert all((ROOT / name).exists() for name in docker)
    sent = (CONTAINER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in sent if line.startswith("!")} == set(docker)


def test_both_images_start_from_the_python_that_is_tested() -> None:
    base = dict(instructions())["FROM"]
    assert f"From: {base}" in sections()[""]
    version = re.match(r"python:(\d+\.\d+)-", base)[1]  # type: ignore[index]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert {"python-version": version} in [step.get("with") for step in workflow["jobs"]["test"]["steps"]]
    assert f">={version}" == SETUP["options"]["python_requires"]


def test_both_images_install_the_pinned_versions_by_one_script() -> None:
    command = "bash /opt/fusionseg/launch/container/install.sh"
    assert ("RUN", command) in instructions() and command in sections()["post"]
    subprocess.run(["bash", "-n", CONTAINER / "install.sh"], check=True)
    lines = [shlex.split(line) for line in installed_with().splitlines() if "pip install" in line and line[0] != "#"]
    assert lines[0] == ["pip", "install", "--no-cache-dir", "-c", "constraints.txt", "torch"]
    assert lines[1][0] == "PIP_CONSTRAINT=constraints.txt"
    extras = re.search(r"\[(.*)\]", lines[1][-1])[1].split(",")  # type: ignore[index]
    assert set(extras) <= set(SETUP["options.extras_require"])
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    needed = "\n".join(
        [SETUP["options"]["install_requires"], *(SETUP["options.extras_require"][one] for one in extras)]
    )
    for name in re.findall(r"^([\w.-]+)[<>=]", needed, re.MULTILINE):
        assert f"\n{name.lower()}==" in pinned, name


def test_the_docker_image_runs_the_program_and_not_as_root() -> None:
    order = [name for name, _ in instructions()]
    assert order.index("RUN") < order.index("USER") < order.index("ENTRYPOINT")
    found = dict(instructions())
    assert found["USER"] not in ("root", "0")
    assert any(name == "RUN" and "useradd" in rest and rest.endswith(found["USER"]) for name, rest in instructions())
    program = SETUP["options.entry_points"]["console_scripts"].strip().partition(" =")[0]
    assert found["ENTRYPOINT"] == f'["{program}"]'
    assert sections()["runscript"] == [f'exec {program} "$@"']


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_commands_of_the_image_definitions_are_valid(name: str) -> None:
    text = (CONTAINER / name).read_text(encoding="utf-8")
    shown = re.sub(r"\\\n#?", " ", text).splitlines()
    lines = [line.lstrip("# ") for line in shown if re.match(r"[# ] +(docker run|apptainer run|fusionseg )", line)]
    assert lines
    for line in lines:
        if line.startswith(("docker", "apptainer")) or name.endswith(".def"):
            words = program_words(shlex.split(line))
            assert words is not None
            if "/opt/fusionseg" not in line and words != ["--version"]:  # lines of %files
                parse(build_parser(), words)
