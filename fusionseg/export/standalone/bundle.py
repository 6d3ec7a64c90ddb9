"""Parts of `configs/inference.json` of a MONAI bundle.

They read and prepare images, and make the masks from the logits of MONAI's sliding windows. `volumes.py` has the
computations on arrays. The masks are those of `fusionseg predict --precision fp32`, up to rounding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from fusionseg.export.standalone.run_onnx import (
    SUFFIXES,
    Image,
    RunError,
    mask_of,
    padded,
    prepare,
    read_image,
    write_mask,
)

Item = dict[str, Any]
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def read_contract(path: str) -> dict[str, Any]:
    """Read `contract.json` of the bundle."""
    contract: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return contract


def load_program(path: str, device: torch.device | str = "cpu") -> nn.Module:
    """Load the network onto a device: a TorchScript program (.ts), or a program of torch.export (.pt2)."""
    if path.endswith(".ts"):
        script: nn.Module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        return script.eval()
    # The tensors that the network makes for itself are moved too, which `.to` of the module would not do.
    return move_to_device_pass(torch.export.load(path), device).module()


def cases(folder: str, contract: dict[str, Any]) -> list[Item]:
    """List the images of a folder: a file for each case; or NAME_0000, NAME_0001, ..., a file for each channel."""
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
        if suffix is None or path.name.startswith("."):
            continue
        stem = path.name[: -len(suffix)]
        match = _CHANNEL.fullmatch(stem)
        found.setdefault(match[1] if match and len(contract["channels"]) > 1 else stem, []).append(path)
    if not found:
        raise RunError(f"{folder}: has no file that ends in {' or '.join(SUFFIXES)}; set --dataset_dir")
    return [{"name": name, "files": files} for name, files in found.items()]


class Preprocess:
    """Reads the files of a case, and prepares the input of the network: turn, resample, crop, normalise, pad."""

    def __init__(self, contract: dict[str, Any]) -> None:
        self.contract = contract

    def __call__(self, item: Item) -> Item:
        """Add `source`, the image as its files hold it, and what `prepared` adds."""
        return self.prepared({**item, "source": read_image(item["files"], self.contract["channels"])})

    def prepared(self, item: Item) -> Item:
        """Add `image`, float32 (C, X, Y, Z), and the place of the original voxels in it."""
        (member,) = self.contract["members"]
        volume = prepare(item["source"], member["input"])
        image, inner = padded(volume, member["window"]["patch"])
        mapping = np.linalg.inv(volume.affine) @ item["source"].affine
        return {**item, "image": torch.from_numpy(np.ascontiguousarray(image)), "inner": inner, "mapping": mapping}


class Postprocess:
    """Makes the mask of a case, in the geometry of its image, and writes it."""

    def __init__(self, contract: dict[str, Any], output_dir: str) -> None:
        self.contract, self.folder = contract, Path(output_dir)

    def path(self, item: Item) -> Path:
        """The file of the mask."""
        return self.folder / f"{item['name']}.nii.gz"

    def mask(self, item: Item) -> Any:
        """The mask (X, Y, Z) from `pred`, the logits of the padded image."""
        (member,) = self.contract["members"]
        logits = item["pred"][(slice(None), *item["inner"])][member["outputs"]]
        return mask_of([logits], [item["mapping"]], item["source"].values.shape[1:], self.contract["output"])

    def __call__(self, item: Item) -> Item:
        mask = self.mask(item)
        write_mask(mask, item["source"], self.path(item))
        return {**item, "mask": mask}


class Evaluator:
    """Predicts the cases of a data set, one after the other. A case that fails does not end the others."""

    def __init__(
        self,
        data: Sequence[Item],
        preprocessing: Preprocess,
        network: nn.Module,
        inferer: Callable[[Tensor, nn.Module], Tensor],
        postprocessing: Postprocess,
        overwrite: bool = False,
    ) -> None:
        self.data, self.network, self.inferer = data, network, inferer
        self.preprocessing, self.postprocessing, self.overwrite = preprocessing, postprocessing, overwrite

    def run(self) -> None:
        """Write a mask for each case.

        Raises:
            SystemExit: a case failed, or its mask is there already.
        """
        torch.backends.cudnn.allow_tf32 = False  # the masks are those of float32
        failed = 0
        for item in self.data:
            path = self.postprocessing.path(item)
            try:
                if path.exists() and not self.overwrite:
                    raise RunError(f"{path}: is there already; add --overwrite True, or choose another --output_dir")
                self.postprocessing(self.predict(self.preprocessing(item)))
                print(f"{path}: written")
            except (RunError, OSError, MemoryError, RuntimeError) as error:  # RuntimeError: a full GPU, for example
                print(f"error: {item['name']}: {error}")
                failed += 1
        if failed:
            raise SystemExit(f"error: {failed} of {len(self.data)} cases have no mask")

    def predict(self, item: Item) -> Item:
        """Add `pred`, the logits of the padded image as an array (K, X, Y, Z)."""
        with torch.no_grad():
            logits = self.inferer(item["image"][None], self.network)  # which moves the windows to the device
        return {**item, "pred": logits[0].float().cpu().numpy()}

    def segment(self, image: Image) -> Any:
        """The mask of an image in memory."""
        item = self.preprocessing.prepared({"name": "", "source": image})
        return self.postprocessing.mask(self.predict(item))
