"""Examples of the documentation: configurations load, batches suit the ranks, files exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from documented_commands import PAGES, ROOT, blocks, examples, program_words

from fusionseg.cli import build_parser
from fusionseg.cluster.profile import ClusterConfig, load_cluster
from fusionseg.cluster.sweep import load_sweep
from fusionseg.cluster.sweep_file import SweepConfig
from fusionseg.commands.base import parse
from fusionseg.config import load_config
from fusionseg.config.loading import validate_section
from fusionseg.config.reference import key_reference
from fusionseg.config.shipped.lookup import is_name
from fusionseg.config.short_forms import file_schema
from fusionseg.distributed.batch_arithmetic import accumulation_steps


def settings(words: list[str]) -> list[str]:
    """Return the words of the form key.path=value."""
    return [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]


def file_of(text: str) -> str | Path:
    """A file of the repository, or the name of a shipped one."""
    return text if is_name(text) else ROOT / text


def is_training(words: list[str]) -> bool:
    """Return whether a command trains: another command with a configuration is one of `fusionseg`."""
    return "--config" in words and (words[0] != "fusionseg" or words[1] in ("train", "pretrain"))


PLANNED = {words[words.index("-o") + 1] for _, words in examples() if words[:2] == ["fusionseg", "plan"]}
"""Configurations that a documented command writes."""
TRAININGS = [
    (page, words)
    for page, words in examples()
    if is_training(words) and words[words.index("--config") + 1] not in PLANNED
]


@pytest.mark.parametrize(("page", "words"), TRAININGS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(TRAININGS)])
def test_global_batch_of_documented_trainings_suits_the_ranks(page: str, words: list[str]) -> None:
    file = words[words.index("--config") + 1]
    config = load_config(file_of(file), settings(words[words.index("--config") :]))
    ranks = next((int(word.partition("=")[2]) for word in words if word.startswith("--nproc_per_node=")), 1)
    if "sbatch" in words:
        script = (ROOT / next(word for word in words if word.endswith(".sbatch"))).read_text()
        ranks = int(re.search(r"#SBATCH --ntasks-per-node=(\d+)", script)[1])
    assert accumulation_steps(config, ranks) >= 1


def test_documentation_has_examples() -> None:
    assert len(TRAININGS) > 8
    assert {page for page, _ in TRAININGS} >= {"README.md", "profiling.md", "pretraining.md"}


@pytest.mark.parametrize(("page", "words"), [(p, w) for p, w in examples() if w[:2] == ["fusionseg", "submit"]])
def test_global_batch_of_documented_sweeps_suits_the_ranks(page: str, words: list[str]) -> None:
    profile = load_cluster(file_of(words[words.index("--cluster") + 1]), [])
    overrides = [word for word in settings(words) if not word.startswith("cluster.")]
    for run in load_sweep(file_of(words[2]), overrides).runs:
        assert accumulation_steps(run.config, profile.nodes * profile.ranks_per_node) >= 1


def test_configuration_of_the_readme_loads(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "README.md", "yaml")
    raw = yaml.safe_load(example)
    if not is_name(raw["extends"]):
        raw["extends"] = str(ROOT / "configs" / raw["extends"])
    (tmp_path / "my_run.yaml").write_text(yaml.safe_dump(raw))
    assert load_config(tmp_path / "my_run.yaml").name == "my_run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (page.parent / link).exists()]
    named = re.findall(r"\b(?:configs|launch|slurm|profiling|docs|tests)/[\w./-]+\.(?:yaml|sh|py|md|sbatch)\b", text)
    missing += [name for name in named if not (ROOT / name).exists() and name != "configs/my_run.yaml"]
    assert not missing


# -- blocks of code --------------------------------------------------------------------------------------------------


def test_documented_commands_have_valid_words(capsys: pytest.CaptureFixture[str]) -> None:
    parser, refused = build_parser(), []
    for page, words in examples():
        if (rest := program_words(words)) is not None and "…" not in rest:
            try:
                parse(parser, rest)
            except SystemExit as end:
                if end.code:
                    refused.append(f"{page}: {shlex.join(words)}\n{capsys.readouterr().err}")
    assert not refused, "\n".join(refused)


def test_most_documented_commands_are_tested() -> None:
    assert sum(program_words(words) is not None for _, words in examples()) > 130
    assert program_words(["srun", "fusionseg", "doctor", "|", "tee", "log"]) == ["doctor"]
    assert program_words(["torchrun", "-m", "fusionseg.train", "--config", "x"]) == ["train", "--config", "x"]
    assert program_words(["make", "docs"]) is None


YAML_BLOCKS = [(page.name, text) for page in PAGES for text in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "text"), YAML_BLOCKS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(YAML_BLOCKS)])
def test_yaml_of_the_documentation_is_valid(page: str, text: str) -> None:
    """A block is a part of a configuration, of a sweep or of a cluster profile."""
    raw = yaml.safe_load(text)
    if "cluster" in raw:
        validate_section(ClusterConfig, raw, {})
    elif "search" in raw:
        validate_section(SweepConfig, raw, {})
    elif raw.keys() & {"grid", "points", "after"}:
        raw = {"name": "x", "base": "base", "points": [{"name": "x"}, {"name": "scratch"}], **raw}
        validate_section(SweepConfig, {key: raw[key] for key in raw.keys() - {"extends"}}, {})
    else:
        problems = jsonschema.Draft202012Validator(file_schema()).iter_errors(raw)
        assert not [f"{'.'.join(map(str, problem.path))}: {problem.message}" for problem in problems]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_the_documentation_compiles(page: Path) -> None:
    """The signatures in api.md are no statements; test_api.py runs its examples."""
    for text in blocks(page, "python"):
        if page.name != "api.md":
            ast.parse(text)


def test_values_of_the_comparison_are_those_of_the_benchmarks() -> None:
    """Ratios and times; the versions of the programs stand before the first heading."""
    text = (ROOT / "docs/comparison.md").read_text(encoding="utf-8").partition("\n## ")[2]
    measured = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    values = re.findall(r"\b\d+\.\d+\b", text)
    assert len(values) > 15
    assert not [value for value in values if not re.search(rf"(?<![\d.]){re.escape(value)}(?!\d)", measured)]


# -- the reference of the configuration ------------------------------------------------------------------------------


def documented_keys() -> dict[tuple[str, str], tuple[str, str]]:
    """(section, key path) -> (type, default) of every row of the reference in docs/configuration.md."""
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    reference = page.split("<!-- fusionseg schema --markdown -->")[1].split("<!-- end -->")[0]
    found = {}
    for part in reference.split("\n### ")[1:]:
        title = part.splitlines()[0]
        for line in part.splitlines():
            if line.startswith("| `"):
                path, kind, default, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:5])
                found[title, path.strip("`")] = (kind, default)
    return found


def test_the_reference_has_every_key_with_its_type_and_default() -> None:
    expected = {
        (section.title, key.path): (key.type, key.default) for section in key_reference() for key in section.keys
    }
    assert len(expected) > 150
    assert documented_keys() == expected, "write the output of `fusionseg schema --markdown` into docs/configuration.md"


# -- names of the code -----------------------------------------------------------------------------------------------

CODE_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md"]


def has_name(dotted: str) -> bool:
    """True if fusionseg.x.y is a module, or y is an attribute of the module fusionseg.x."""
    module, _, attribute = dotted.rpartition(".")
    if (ROOT / f"{dotted.replace('.', '/')}.py").exists():
        return True
    if (ROOT / dotted.replace(".", "/") / "__init__.py").exists():
        return True
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", CODE_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_names_of_the_code_exist(page: Path) -> None:
    """Paths such as fusionseg/data/store.py, and dotted names such as fusionseg.data.store."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w/])fusionseg/[\w/]+(?:\.py)?\b", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    dotted = re.findall(r"\bfusionseg(?:\.[A-Za-z_]\w*)+", text)
    files = {"fusionseg.schema", "fusionseg.sif", "fusionseg.yaml"}  # names of files and images, not of code
    missing += [name for name in dotted if not has_name(name) and not name.startswith(tuple(files))]
    assert not missing
