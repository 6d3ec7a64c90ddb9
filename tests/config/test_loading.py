"""From files and overrides to a configuration: what wins, where it was written, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusionseg.config import RunConfig, differences, dump_config, load_config, validate
from fusionseg.config.loading import read_raw
from fusionseg.models.swin.fusion_config import FUSION_PRESETS
from fusionseg.utils.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
WHOLE = [path for path in CONFIGS if path.stem not in ("base", "fine_tuning")]
UNET = "model: {name: unet}\n"


def write(folder: Path, **files: str) -> Path:
    """Write FILE.yaml for each keyword (`__` is a folder); the path of the last."""
    path = folder
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def refusal(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return caught.value.problems


# What a file extends


def test_a_file_wins_over_what_it_extends_key_by_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base="seed: 3\ntrain: {steps: 900, clip_grad: 2.0}\ndata: {patch: [64, 64, 64]}\n" + UNET,
        run="extends: base.yaml\ntrain: {steps: 700}\ndata: {patch: [32, 48, 64]}\n",
    )
    config = load_config(path)
    assert (config.seed, config.train.steps, config.train.clip_grad) == (3, 700, 2.0)
    assert config.data.patch == (32, 48, 64)  # lists are replaced whole


def test_later_files_of_a_list_win(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        one="seed: 1\nname: one\n" + UNET,
        two="seed: 2\nvalidate: {every: 7}\n",
        run="extends: [one.yaml, two.yaml]\n",
    )
    config = load_config(path)
    assert (config.seed, config.name, config.validation.every) == (2, "one", 7)


def test_paths_are_relative_to_the_file_that_extends(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base="seed: 5\n" + UNET,
        family__base="extends: ../base.yaml\noutput: elsewhere\n",
        family__deep__run="extends: ../base.yaml\nname: deep\n",
    )
    config = load_config(path)
    assert (config.seed, config.output, config.name) == (5, "elsewhere", "deep")


def test_one_base_may_be_reached_twice(tmp_path: Path) -> None:
    base = {"base": "seed: 5\n" + UNET, "one": "extends: base.yaml", "two": "extends: base.yaml\nname: two"}
    assert load_config(write(tmp_path, **base, run="extends: [one.yaml, two.yaml]")).name == "two"


def test_a_circle_is_refused_with_the_way_round(tmp_path: Path) -> None:
    path = write(tmp_path, one="extends: two.yaml", two="extends: one.yaml")
    (problem,) = refusal(path)
    assert "remove one of the links" in problem
    assert re.search(r"two\.yaml -> .*one\.yaml -> .*two\.yaml", problem)


@pytest.mark.parametrize("extends", ["bsae.yaml", "[base.yaml, bsae.yaml]"])
def test_a_missing_base_is_named_with_the_line(tmp_path: Path, extends: str) -> None:
    path = write(tmp_path, base=UNET, run=f"name: run\nextends: {extends}\n")
    (problem,) = refusal(path)
    assert problem.startswith(f"extends ({path}, line 2): {tmp_path / 'bsae.yaml'}: there is no such")
    assert "holds base.yaml, run.yaml" in problem


@pytest.mark.parametrize("extends", ["3", "{base: yes}", "null", "[1]"])
def test_extends_takes_names_only(tmp_path: Path, extends: str) -> None:
    (problem,) = refusal(write(tmp_path, run=f"extends: {extends}\n{UNET}"))
    assert "expected a file or a list of files" in problem and "run.yaml, line 1" in problem


# Named sections


@pytest.mark.parametrize(
    ("section", "under", "over", "expected"),
    [
        ("model", "{name: unet, channels: [8, 16]}", "{name: segresnet}", {"init_filters": 16}),
        ("model", "{name: unet, channels: [8, 16]}", "{name: unet, dropout: 0.5}", {"channels": (8, 16)}),
        ("model", "{name: unet, channels: [8, 16]}", "{dropout: 0.5}", {"channels": (8, 16)}),
        ("optim", "{name: sgd, momentum: 0.5, lr: 0.1}", "{name: adamw}", {"momentum": None, "lr": 1e-4}),
        ("optim", "{lr: 0.1}", "{weight_decay: 0.5}", {"lr": 0.1, "weight_decay": 0.5}),
        ("schedule", "{name: constant, warmup: 1}", "{name: cosine}", {"warmup": 500}),
        ("loss", "{name: dice_focal, gamma: 3}", "{name: dice_ce}", {"gamma": 2.0}),
    ],
)
def test_a_section_starts_afresh_when_its_name_changes(
    tmp_path: Path, section: str, under: str, over: str, expected: dict[str, Any]
) -> None:
    model = "" if section == "model" else UNET
    path = write(tmp_path, base=f"{section}: {under}\n{model}", run=f"extends: base.yaml\n{section}: {over}\n")
    made = getattr(load_config(path), section)
    assert {key: getattr(made, key) for key in expected} == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_overrides_does_not_matter_for_a_new_name(tmp_path: Path, reverse: bool) -> None:
    path = write(tmp_path, run="model: {name: unet, channels: [8, 16]}\n")
    overrides = ["model.name=segresnet", "model.init_filters=32"]
    config = load_config(path, overrides[::-1] if reverse else overrides)
    assert config.model.name == "segresnet" and config.model.init_filters == 32


# Overrides


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("train.steps=900", ("train", "steps"), 900),
        ("optim.lr=1e-4", ("optim", "lr"), 1e-4),
        ("optim.lr=3E+2", ("optim", "lr"), 300.0),
        ("optim.lr=2.5e-3", ("optim", "lr"), 2.5e-3),
        ("optim.lr=1", ("optim", "lr"), 1.0),
        ("train.compile=true", ("train", "compile"), "default"),
        ("train.compile=reduce-overhead", ("train", "compile"), "reduce-overhead"),
        ("train.compile=false", ("train", "compile"), False),
        ("train.cudnn_benchmark=true", ("train", "cudnn_benchmark"), True),
        ("train.clip_grad=null", ("train", "clip_grad"), None),
        ("train.clip_grad=", ("train", "clip_grad"), None),
        ("data.patch=[32, 64,96]", ("data", "patch"), (32, 64, 96)),
        ("data.labels=[background, tumour]", ("data", "labels"), ("background", "tumour")),
        ("augment.rotate.degrees=30", ("augment", "rotate", "degrees"), 30.0),
        ("augment.rotate={prob: 0.5}", ("augment", "rotate", "prob"), 0.5),
        ("data.root=/data/a=b", ("data", "root"), "/data/a=b"),
        ("name=2024-05-01", ("name",), "2024-05-01"),
        ("validate.every=3", ("validation", "every"), 3),
    ],
)
def test_overrides_win_and_keep_their_types(
    tmp_path: Path, override: str, keys: tuple[str, ...], value: object
) -> None:
    made: Any = load_config(write(tmp_path, run=UNET), [override])
    for key in keys:
        made = getattr(made, key)
    assert made == value and type(made) is type(value)


def test_the_last_override_of_a_key_wins() -> None:
    config = load_config(None, ["model.name=unet", "seed=1", "seed=2", "augment.rotate=null", "augment.rotate.prob=1"])
    assert config.seed == 2
    assert config.augment.rotate is not None and config.augment.rotate.prob == 1


def test_overrides_of_one_section_add_up() -> None:
    config = load_config(None, ["data.fold=1", "model.dropout=0.5", "data={folds: 3}", "model={name: unet}"])
    assert (config.data.fold, config.data.folds, config.model.name) == (1, 3, "unet")
    assert config.model.dropout == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("override", ["train.steps", "=3", "train..steps=3", ".seed=3", "train.=3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    (problem,) = refusal(None, override)
    assert problem == f"{override!r} on the command line: expected key.path=value"


@pytest.mark.parametrize("override", ["data.patch=[1, 2", "name='a", "data.root=\x00", "model={a: 1, a"])
def test_an_override_that_is_no_yaml_is_refused(override: str) -> None:
    (problem,) = refusal(None, override)
    assert problem == f"{override!r} on the command line: the value is not valid YAML; quote it"


def test_an_override_is_blamed_for_its_own_key_only(tmp_path: Path) -> None:
    path = write(tmp_path, run="model: {name: unet}\ndata:\n  fold: -9\n")
    assert refusal(path, "data.root=/data") == [f"data.fold ({path}, line 3): expected a value of at least 0, got -9"]
    assert refusal(path, "data.fold=-7") == [
        "data.fold (command line: data.fold=-7): expected a value of at least 0, got -7"
    ]
    assert refusal(path, "data.fold=0", "augment.noise.stdd=1")[0].startswith(
        "augment.noise.stdd (command line: augment.noise.stdd=1): unknown key; did you mean std?"
    )


# Files that are no configuration


def test_keys_that_stand_twice_are_all_named_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, run="seed: 1\ntrain:\n  steps: 1\n  steps: 2\nseed: 2\nmodel: {name: unet}\n")
    assert refusal(path) == [
        f"train.steps ({path}, line 4): is written twice; remove one",
        f"seed ({path}, line 5): is written twice; remove one",
    ]


@pytest.mark.parametrize(
    ("text", "line"), [("seed: 1\ndata: {patch: [1, 2\n", 3), ("a: 1\nb: c: d\n", 2), ("a: 1\n\tb: 2\n", 2)]
)
def test_invalid_yaml_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path, run=text)
    (problem,) = refusal(path)
    assert problem.startswith(f"{path}, line {line}: not valid YAML: ")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, run="- a\n- b\n")
    assert refusal(path) == [f"{path}: expected a mapping of `key: value`, got a list"]
    path.write_bytes(b"name: \x07\n")
    assert refusal(path)[0].startswith(f"{path}: not valid YAML: ")
    path.write_bytes(b"name: \xff\n")
    assert refusal(path)[0].startswith(f"{path}: cannot be read: ")
    assert "there is no such configuration file; " in refusal(tmp_path / "ran.yaml")[0]
    assert "run.yaml" in refusal(tmp_path / "ran.yaml")[0]
    assert "nor a folder" in refusal(tmp_path / "nowhere" / "run.yaml")[0]
    assert refusal(tmp_path)[0].startswith(f"{tmp_path}: is a folder")


def test_numbers_in_files_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, run=f"optim: {{lr: 1e-4, weight_decay: 5.E-3}}\nname: 2024-05-01\n{UNET}")
    config = load_config(path)
    assert (config.optim.lr, config.optim.weight_decay, config.name) == (1e-4, 5e-3, "2024-05-01")


# What is written again


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_shipped_configurations_survive_writing_and_reading(tmp_path: Path, path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path, again=dump_config(config))) == config


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in WHOLE], ids=lambda path: path.stem)
def test_shipped_bases_only_lack_a_model(path: Path) -> None:
    assert isinstance(load_config(path, ["model.name=unet"]), RunConfig)
    assert all(problem.startswith("model") for problem in refusal(path))


@pytest.mark.parametrize("name", sorted(FUSION_PRESETS))
def test_the_thesis_variants_survive_writing_and_reading(tmp_path: Path, name: str) -> None:
    config = load_config(None, [f"model={{name: {name}, feature_size: 24}}"])
    text = dump_config(config)
    again = load_config(write(tmp_path, again=text))
    assert again == config and dump_config(again) == text


@pytest.mark.parametrize("name", ["1e4", "12E-5", "1", "1.5", "true", "null", "2024-05-01", "0x1F", "1_0"])
def test_names_that_look_like_something_else_survive(tmp_path: Path, name: str) -> None:
    config = validate({"model": {"name": "unet"}, "name": name})
    assert load_config(write(tmp_path, again=dump_config(config))).name == name


def test_everything_set_survives_writing_and_reading(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "model={name: unet, channels: [8, 16], strides: [2], norm: batch}",
            "data={labels: [a, b], spacing: [0.7, 1, 1e-1], orientation: null}",
            "data.crop_foreground.threshold=-5",
            "data.intensity.clip=[-1000, 600]",
            "augment={shift_intensity: {}, scale_intensity: {}, noise: {}}",
            "augment.rotate={}",
            "augment.scale={}",
            "augment.elastic={}",
            "optim={name: sgd, momentum: 0.9}",
            "stop.plateau={}",
            "train.clip_grad=null",
            "init_from=runs/mae",
        ],
    )
    assert load_config(write(tmp_path, again=dump_config(config))) == config


def test_differences_name_every_key_that_changed() -> None:
    old = load_config(None, ["model.name=unet", "data.patch=[32,32,32]"]).to_dict()
    new = load_config(None, ["model.name=unet", "seed=4", "data.patch=[32,32,64]", "stop.plateau={}"]).to_dict()
    assert differences(old, old) == []
    assert differences(old, new) == [
        "seed: 0 -> 4",
        "data.patch: [32, 32, 32] -> [32, 32, 64]",
        "stop.plateau: None -> {'window': 5000, 'windows': 2, 'min_gain': 0.004}",
    ]
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: 2 -> None",
        "a.d: None -> 3",
    ]


def test_places_name_the_file_that_wrote_the_value(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base="seed: 1\ntrain:\n  steps: 5\n",
        run="extends: base.yaml\ntrain:\n  threads: 2\n" + UNET,
    )
    raw, places = read_raw(path, ["optim.lr=0.1"])
    assert raw["train"] == {"steps": 5, "threads": 2}
    assert places["train", "steps"] == f"{tmp_path / 'base.yaml'}, line 3"
    assert places["train", "threads"] == f"{path}, line 3"
    assert places["optim", "lr"] == "command line: optim.lr=0.1"


def test_the_configuration_is_read_without_torch_and_monai() -> None:
    code = "import sys, fusionseg.config; print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


TYPED = [
    "/x/runs #2", "a: b", "1e3", "/data/[x]", "[x]", "{}", "{a: b}", "yes", "no", "on", "12", "1.5", "0x1f", "1:30:00",
    "2024-05-01", "~", "~/runs", "$HOME/x", "${X}", "%a/%j", "a b", " a", "a ", "-x", "- x", "? x", "! x", "&a", "*a",
    "|", ">", "@x", "`x`", "a'b", 'a"b', "a\\nb", "a\tb", "#x", "a#b", "Größe", "True", "NULL", "=", "a=b", "---",
    "...", "a, b", "x:y", "C:\\data", "%TAG", "'", "it's",
]  # fmt: skip


@pytest.mark.parametrize("value", [text for text in TYPED if text[0] not in "'\""])
@pytest.mark.parametrize("key", ["output", "data.root", "init_from", "data.prepared"])
def test_a_text_arrives_as_it_was_typed(tmp_path: Path, key: str, value: str) -> None:
    override = f"{key}={value}"
    config = load_config(None, ["model.name=unet", override])
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config  # as the run's folder keeps it


@pytest.mark.parametrize(
    ("typed", "arrives"), [("'a #b'", "a #b"), ('"null"', "null"), ("''", ""), ('"a\\tb"', "a\tb")]
)
def test_quotes_around_all_of_a_text_are_taken_off(typed: str, arrives: str) -> None:
    assert load_config(None, ["model.name=unet", f"data.root={typed}"]).data.root == arrives


def test_null_and_nothing_are_no_value() -> None:
    for override in ("data.root=null", "data.root="):
        assert load_config(None, ["model.name=unet", override]).data.root is None
    for override in ("output=null", "output="):
        assert "output (command line: " in refusal(None, "model.name=unet", override)[0]


@pytest.mark.parametrize("name", ["1e3", "007", "2024-05-01", "yes", "1.5"])
def test_a_name_may_look_like_a_number(name: str) -> None:
    assert load_config(None, ["model.name=unet", f"name={name}"]).name == name


@pytest.mark.parametrize("override", ["train.steps=3 #2", "data.patch=[16, 16, 16] # small", "data.train_cases=#3"])
def test_what_yaml_would_cut_off_is_refused(override: str) -> None:
    (problem,) = refusal(None, "model.name=unet", override)
    assert problem.startswith(f"{override!r} on the command line: '#") and "is not part of the value" in problem


def test_a_text_with_a_character_that_no_file_may_hold_is_refused() -> None:
    for value in ("a\x00b", "a\x1bb", "\udcff"):
        (problem,) = refusal(None, "model.name=unet", f"output={value}")
        assert "is not valid YAML" in problem


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("configs/hippocampus_*.yaml")), ids=lambda p: p.stem
)
def test_the_hippocampus_is_augmented_as_the_report_on_it_advises(path: Path) -> None:
    config = load_config(path)
    augment = config.augment
    assert augment.noise is None and augment.scale is None
    assert augment.shift_intensity is None and augment.scale_intensity is None
    if config.pretrain is None:
        assert augment.flip and augment.elastic is not None
        assert augment.rotate is not None and 0 < augment.rotate.degrees <= 10
