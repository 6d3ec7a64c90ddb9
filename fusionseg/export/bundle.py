"""The export of a network as a MONAI bundle, which `python -m monai.bundle run` executes without fusionseg."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from monai.inferers import SlidingWindowInferer
from torch import nn

from fusionseg.export.contract import CONTRACT
from fusionseg.export.programs import has_fixed_device, write_program
from fusionseg.export.standalone.bundle import Evaluator, Postprocess, Preprocess, load_program
from fusionseg.runs.archive.writer import safetensors_bytes
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.paths import POSTPROCESSING
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json, write_text, writing
from fusionseg.utils.version import __version__

BUNDLE = "bundle"
INFERENCE, METADATA = "configs/inference.json", "configs/metadata.json"
README, LICENCE, WEIGHTS = "docs/README.md", "docs/license.txt", "models/model.safetensors"
SCRIPTS = {"run_onnx.py": "volumes.py", "bundle.py": "segmentation.py"}
"""Modules of `standalone/` and their names in the bundle's folder `scripts`."""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_PROGRAMS = {"torchscript": "models/model.ts", "torch": "models/model.pt2"}
NOT_STATED = "not stated"
_POSTPROCESSING_TEXT = (
    f"`docs/{POSTPROCESSING}` has the post-processing that was chosen on validation cases (largest component, holes,"
    " smallest size of each class). The bundle does not apply it; `fusionseg predict --postprocess FILE` does.",
    "",
)


def write_bundle_program(model: nn.Module, shape: tuple[int, ...], folder: Path) -> JsonObject:
    """Write the weights, and the network as a TorchScript program, or else as one of torch.export.

    Args:
        model: the network, in evaluation mode, float32, on the CPU.
        shape: of a window, (C, X, Y, Z).
        folder: of the bundle.

    Returns:
        The program, see `contract.with_programs`.

    Raises:
        UserError: torch cannot export the network.
        WriteError: a file cannot be written.
    """
    (folder / WEIGHTS).parent.mkdir(parents=True)
    with writing(folder / WEIGHTS):
        (folder / WEIGHTS).write_bytes(safetensors_bytes(model.state_dict()))
    problems = []
    for kind, name in _PROGRAMS.items():
        try:
            batch = write_program(kind, model, shape, folder / name)
        except UserError as error:
            problems += error.problems
        else:
            if kind != "torchscript" or not has_fixed_device(folder / name):
                return {"program": name, "batch": batch}
            problems.append(f"--format {kind}: the program of this network runs on the CPU alone")
        (folder / name).unlink(missing_ok=True)
    raise UserError(problems)


def write_bundle_files(folder: Path, contract: JsonObject, documents: Mapping[str, str]) -> None:
    """Write the configurations, the scripts and the documents of a bundle.

    Args:
        folder: of the bundle, with its program.
        contract: with the program.
        documents: further texts for the folder docs, by the name of the file.
    """
    write_json(folder / INFERENCE, inference_config(contract))
    write_json(folder / METADATA, metadata(contract))
    write_text(folder / README, _readme(contract, has_postprocessing=POSTPROCESSING in documents))
    write_text(folder / LICENCE, f"{contract['licence'] or 'The licence of the weights is not stated.'}\n")
    for name, text in documents.items():
        write_text(folder / "docs" / name, text)
    scripts = folder / "scripts"
    scripts.mkdir()
    (scripts / "__init__.py").write_text('"""Parts of configs/inference.json."""\n', encoding="utf-8")
    for source, name in SCRIPTS.items():
        text = (Path(__file__).parent / "standalone" / source).read_text(encoding="utf-8")
        (scripts / name).write_text(
            text.replace("fusionseg.export.standalone.run_onnx", "scripts.volumes"), encoding="utf-8"
        )


def inference_config(contract: JsonObject) -> JsonObject:
    """The content of configs/inference.json.

    Args:
        contract: with the program.
    """
    (member,) = contract["members"]
    window = member["window"]
    scripts = "scripts.segmentation"
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "overwrite": False,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "contract": {"_target_": f"{scripts}.read_contract", "path": f"$@bundle_root + '/{CONTRACT}'"},
        "network_def": {
            "_target_": f"{scripts}.load_program",
            "path": f"$@bundle_root + '/{member['program']}'",
            "device": "@device",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": f"{scripts}.Preprocess", "contract": "@contract"},
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": f"{scripts}.cases", "folder": "@dataset_dir", "contract": "@contract"},
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": window["patch"],
            "sw_batch_size": window["batch"],
            "overlap": window["overlap"],
            "mode": window["blend"],
            "sw_device": "@device",
            "device": "cpu",
        },
        "postprocessing": {
            "_target_": f"{scripts}.Postprocess",
            "contract": "@contract",
            "output_dir": "@output_dir",
        },
        "evaluator": {
            "_target_": f"{scripts}.Evaluator",
            "data": "$@dataset.data",
            "preprocessing": "@preprocessing",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "overwrite": "@overwrite",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(contract: JsonObject) -> JsonObject:
    """The content of configs/metadata.json, by MONAI's schema.

    Args:
        contract: with the program.
    """
    (member,) = contract["members"]
    channels, output = contract["channels"], contract["output"]
    names = ", ".join(output["names"])
    structures = ", ".join(name for name, value in zip(output["names"], output["values"], strict=True) if value != 0)
    patch = member["window"]["patch"]
    tensor = {"type": "image", "spatial_shape": patch, "dtype": "float32", "value_range": [], "is_patch_data": True}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by fusionseg {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "fire")},
        "name": contract["name"],
        "task": f"segmentation of {structures} in 3D images",
        "description": f"{member['network']['name']}, trained and exported by fusionseg; docs/README.md describes it",
        "authors": NOT_STATED,
        "copyright": contract["licence"] or NOT_STATED,
        "data_type": "nifti",
        "image_classes": f"channels in this order: {', '.join(channels)}; {_intensity_text(member['input'])}",
        "pred_classes": f"outputs in this order: {names}; {output['activation']}",
        "intended_use": "research; no medical device",
        "data_contract": {**member["input"], "channels": channels, "value_names": output["value_names"]},
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "modality": NOT_STATED,
                    "num_channels": len(channels),
                    "channel_def": _numbered(channels),
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "segmentation",
                    "num_channels": len(output["names"]),
                    "channel_def": _numbered(output["names"]),
                }
            },
        },
    }


def _numbered(names: list[str]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(names)}


def _intensity_text(settings: JsonObject) -> str:
    spacing = settings["spacing_mm"]
    grid = "the voxel size of the file" if spacing is None else f"{' x '.join(map(str, spacing))} mm"
    modes = ", ".join(dict.fromkeys(str(each["mode"]) for each in settings["intensity"]))
    return f"axes {settings['orientation'] or 'of the file'}, {grid}, intensity by {modes}"


def _readme(contract: JsonObject, *, has_postprocessing: bool) -> str:
    (member,) = contract["members"]
    packages = " ".join(f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "monai", "nibabel", "fire"))
    names = contract["output"]["value_names"]
    rows = [f"| {value} | {name} |" for value, name in names.items()]
    structures = ", ".join(name for value, name in names.items() if value != "0")
    return "\n".join(
        [
            f"# {contract['name']}",
            "",
            f"A {member['network']['name']} that segments {structures}.",
            "",
            "```",
            f"pip install {packages}",
            "python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir MASKS",
            "```",
            "",
            "Call it in this folder; from another one, it is `--config_file BUNDLE/configs/inference.json --bundle_root"
            " BUNDLE`. `IMAGES` is a folder of NIfTI files, one for"
            f" each case{_channel_files(contract['channels'])}. The masks have the geometry of the images."
            " `--overwrite True` replaces masks.",
            "",
            f"The axes, voxel size and intensity of the input are prepared: {_intensity_text(member['input'])}.",
            "",
            "| value in a mask | meaning |",
            "|---|---|",
            *rows,
            "",
            "`models/model.safetensors` has the weights alone, for fine-tuning. `parity.json` has the comparison of the"
            " masks with those of `fusionseg predict`, with the names of the compared cases."
            " `contract.json` has every setting that your own program needs.",
            "",
            *(_POSTPROCESSING_TEXT if has_postprocessing else ()),
            f"Licence of the weights: {contract['licence'] or NOT_STATED}.",
            "",
        ]
    )


def _channel_files(channels: list[str]) -> str:
    if len(channels) == 1:
        return ""
    return f": 4D, or NAME_0000, NAME_0001, ... for the channels {', '.join(channels)}"


def bundle_evaluator(folder: Path, contract: JsonObject) -> Evaluator:
    """The evaluator of a bundle in this process, with the settings of its configuration.

    Args:
        folder: of the bundle.
        contract: with the program.
    """
    (member,) = contract["members"]
    settings = {key: value for key, value in inference_config(contract)["inferer"].items() if key != "_target_"}
    network = load_program(str(folder / member["program"]))
    postprocess = Postprocess(contract, str(folder))
    inferer = SlidingWindowInferer(**{**settings, "sw_device": "cpu"})
    return Evaluator([], Preprocess(contract), network, inferer, postprocess)
