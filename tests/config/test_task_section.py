"""The `task` section: built-in tasks by their names, from one module each, and their descriptions without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusionseg.config import validate
from fusionseg.runs.run_config import config_hash
from fusionseg.utils.errors import UserError

TASK = (Path(__file__).parents[2] / "docs/extending.md").read_text().split("# my_task.py\n")[1].split("```")[0]
UNET = {"model": {"name": "unet"}}
SWIN = {"model": {"name": "swin_fusion_od"}, "data": {"patch": [64, 64, 64]}}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("plain", "without"),
    [
        ({**UNET, "task": "segmentation"}, UNET),
        ({**UNET, "task": {"name": "segmentation", "args": {}}}, UNET),
        ({**UNET, "task": None}, UNET),
        ({**SWIN, "task": "pretraining"}, {**SWIN, "pretrain": {}}),
        ({**SWIN, "task": "pretraining", "pretrain": {"ratio": 0.7}}, {**SWIN, "pretrain": {"ratio": 0.7}}),
    ],
)
def test_the_name_of_the_default_task_changes_nothing(plain: dict[str, Any], without: dict[str, Any]) -> None:
    named, unnamed = validate(plain), validate(without)
    assert named.to_dict() == unnamed.to_dict() and "task" not in named.to_dict()
    assert config_hash(named) == config_hash(unnamed) and named.task_info == unnamed.task_info


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ({**UNET, "task": "segmentaton"}, "task.name: there is no task 'segmentaton'; did you mean segmentation?"),
        ({**UNET, "task": {"name": "segmentation", "args": {"a": 1}}}, "task.args.a: is no argument of Segmentation"),
        ({**SWIN, "task": "segmentation", "pretrain": {}}, "pretrain: is for the task pretraining, and `task` is segm"),
        ({**UNET, "task": "pretraining"}, "pretrain: unet has no encoder that can be pre-trained"),
    ],
)
def test_a_wrong_task_is_one_message(plain: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(plain)
    (problem,) = caught.value.problems
    assert problem.startswith(expected)


def test_the_description_of_a_built_in_task_needs_no_torch() -> None:
    code = f"import sys; from fusionseg.config import validate; print(validate({UNET}).task_info.score)"
    assert run(f"{code}; print(sorted({{'torch', 'monai', 'numpy'}} & sys.modules.keys()))") == "dice\n[]\n"


def test_a_third_task_is_one_module_with_a_decorator(tmp_path: Path) -> None:
    decorated = TASK.replace("class Brightness", '@tasks.register("brightness")\nclass Brightness')
    (tmp_path / "brightness.py").write_text(f"from fusionseg.config.registry import tasks\n{decorated}")
    plain = {**UNET, "task": {"name": "brightness", "args": {"threshold": 2.0}}}
    code = f"""
import fusionseg.training.tasks.named as home
home.__path__.append({str(tmp_path)!r})
from fusionseg.config import validate
from fusionseg.config.parts.task import built_in_tasks, task_info
from fusionseg.training.tasks.choice import build_task
config = validate({plain})
assert validate(config.to_dict()) == config
assert task_info(task=config.to_dict()["task"]) == config.task_info
print([task.name for task in built_in_tasks()], config.task_info.score, build_task(config).threshold)
"""
    assert run(code) == "['segmentation', 'pre-training', 'classification'] accuracy 2.0\n"
