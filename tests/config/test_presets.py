"""Presets of the section `augment`: what a name stands for, what may stand beside it, and that a run keeps it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusionseg.cluster.sweep import load_sweep
from fusionseg.config import RunConfig, dump_config, load_config, validate
from fusionseg.config.data import augmentation_presets
from fusionseg.config.data.augmentation_presets import PRESETS, Preset
from fusionseg.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def augment(config: RunConfig) -> dict[str, Any]:
    """The plain section, without the keys that are off."""
    return {key: value for key, value in config.to_dict()["augment"].items() if value is not None}


def of(raw: Any) -> dict[str, Any]:
    return augment(validate({"model": {"name": "unet"}, "augment": raw}))


def write(folder: Path, file: str, **content: Any) -> Path:
    path = folder / file
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_exactly_its_parts_and_the_resolved_file_states_their_values(name: str) -> None:
    config = validate({"model": {"name": "unet"}, "augment": name})
    stated = augment(config)
    assert stated.keys() == PRESETS[name].values.keys()  # type: ignore[index]
    for key, values in PRESETS[name].values.items():  # type: ignore[index]
        assert stated[key] == values or values.items() <= stated[key].items()
    assert "preset" not in dump_config(config)
    assert validate(yaml.safe_load(dump_config(config))) == config
    assert of({"preset": name}) == stated


def test_the_recipe_of_the_thesis_is_its_preset() -> None:
    assert augment(load_config("parse_fusion_od")) == of("thesis")
    assert load_config("parse_fusion_od", ["augment=thesis"]) == load_config("parse_fusion_od")


def test_a_later_change_of_a_preset_does_not_change_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = yaml.safe_load(dump_config(validate({"model": {"name": "unet"}, "augment": "light"})))
    before = validate(resolved)
    later = {**PRESETS, "light": Preset("", {"flip": 1.0, "elastic": {}})}
    monkeypatch.setattr(augmentation_presets, "PRESETS", later)
    assert of("light") == {"flip": 1.0, "elastic": {"prob": 0.1, "spacing": 16, "magnitude": 2.0}}
    assert validate(resolved) == before


def test_keys_beside_a_preset_change_single_values() -> None:
    plain = of("nnunet")
    changed = of({"preset": "nnunet", "rotate": {"degrees": 10}, "gamma": None, "elastic": {}, "flip": 0.25})
    assert changed["rotate"] == {"prob": 0.2, "degrees": 10}
    assert changed["elastic"]["spacing"] == 16 and changed["flip"] == 0.25
    assert plain.keys() - changed.keys() == {"gamma"}
    assert {key for key in plain.keys() & changed.keys() if plain[key] != changed[key]} == {"rotate", "flip"}


def test_a_preset_replaces_the_section_of_an_extended_file(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", model={"name": "unet"}, augment={"elastic": {}, "shift_intensity": {}, "gamma": {}})
    file = write(tmp_path, "run.yaml", extends="base.yaml", augment={"preset": "thesis", "noise": {}})
    assert augment(load_config(file)).keys() == {"flip", "shift_intensity", "rotate", "noise"}
    short = write(tmp_path, "short.yaml", extends="run.yaml", augment="none")
    assert augment(load_config(short)) == {"flip": 0}
    # Without the name of another preset, a file changes single values of the one that it extends.
    more = write(tmp_path, "more.yaml", extends="run.yaml", augment={"rotate": {"degrees": 5}, "noise": None})
    assert augment(load_config(more))["rotate"] == {"prob": 0.1, "degrees": 5}
    assert "noise" not in augment(load_config(more))
    for words in (["augment=light", "augment.noise=null"], ["augment.noise=null", "augment.preset=light"]):
        found = augment(load_config(file, words))
        assert found.keys() == PRESETS["light"].values.keys() - {"noise"}


def test_a_sweep_over_presets(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", model={"name": "unet"}, augment={"elastic": {}})
    grid = {"augment.preset": ["none", "light"], "augment.flip": [0.25]}
    sweep = load_sweep(write(tmp_path, "sweep.yaml", name="presets", base="base.yaml", grid=grid))
    assert [run.config.name for run in sweep.runs] == ["flip0.25-none", "flip0.25-light"]
    assert [run.config.augment.elastic for run in sweep.runs] == [None, None]
    assert [run.config.augment.flip for run in sweep.runs] == [0.25, 0.25]
    assert [sorted(run.config.augment.intensities) for run in sweep.runs] == [
        [],
        ["contrast", "gamma", "noise", "scale_intensity"],
    ]


@pytest.mark.parametrize("words", [["augment=nnunett"], ["augment.preset=nnunett"]])
def test_an_unknown_preset_is_named(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"augment.preset \(command line: .*\): unknown value 'nnunett'; did you mean"):
        load_config("demo", words)


@pytest.mark.parametrize("words", [["augment={preset: [nnunet]}"], ["augment.preset={nnunet: 1}"]])
def test_a_preset_that_is_no_name_is_refused_in_one_message(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"augment.preset \(command line: ") as caught:
        load_config("demo", words)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("preset", [{}, {"preset": "nnunet"}])
def test_null_switches_flips_off(preset: dict[str, str]) -> None:
    assert of({**preset, "flip": None}) == of({**preset, "flip": 0.0})


def test_the_documentation_has_the_presets() -> None:
    page = (ROOT / "docs/augmentation.md").read_text(encoding="utf-8")
    table = page.split("<!-- presets -->")[1].strip().split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.MULTILINE)
    documented = {key: [cell.strip() for cell in re.split(r"\|", cells)] for key, cells in rows}
    keys = {key for preset in PRESETS.values() for key in preset.values}
    assert documented.keys() == keys
    for key, cells in documented.items():
        for cell, preset in zip(cells, PRESETS.values(), strict=True):
            value = preset.values.get(key)
            assert cell == ("" if value is None else f"`{shown(value)}`"), (key, cell)


def shown(value: Any) -> str:
    """A value as one line of YAML, without the braces of a section."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).split("\n")[0].strip("{}")


if __name__ == "__main__":  # writes the table of docs/augmentation.md
    keys = list(dict.fromkeys(key for name in ("nnunet", "thesis") for key in PRESETS[name].values))
    print("| key |", " | ".join(PRESETS), "|\n|---|" + "---|" * len(PRESETS))
    for key in keys:
        cells = [f"`{shown(preset.values[key])}`" if key in preset.values else "" for preset in PRESETS.values()]
        print(f"| `{key}` |", " | ".join(cells), "|")
