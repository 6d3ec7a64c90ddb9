"""Masks as NumPy arrays (.npy), with the affine and the names of the classes in a JSON file beside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.inference.mask_formats.mask import Mask, OriginText, StoredMask, is_mask_type, voxel_digest
from fusionseg.utils.errors import WriteError
from fusionseg.utils.files import whole_file, write_json

_ORIGIN = "origin"


class NumpyMasks:
    """The format NumPy. The JSON file has the origin."""

    suffix = ".npy"

    def check(self, image: Path, readers: Readers) -> None:
        """Accept every image."""

    def files(self, target: Path) -> list[Path]:
        return [target, target.with_suffix(".json")]

    def write(self, mask: Mask, target: Path, origin: OriginText) -> None:
        array, side = self.files(target)
        content = {
            "affine": mask.affine().tolist(),
            "labels": {str(value): name for value, name in sorted(mask.names.items())},
            _ORIGIN: origin(voxel_digest(mask.values)),
        }
        # The JSON comes first, without an older array beside it: if the program is killed between the two, the next one
        # recognises it as its own.
        array.unlink(missing_ok=True)
        write_json(side, content)
        try:
            with whole_file(array) as temporary:
                np.save(temporary, np.ascontiguousarray(mask.values))
        except WriteError:
            if not array.exists():
                side.unlink(missing_ok=True)
            raise

    def read(self, target: Path) -> StoredMask:
        array, side = self.files(target)
        try:
            content: Any = json.loads(side.read_text(encoding="utf-8"))
            text = content.get(_ORIGIN, "") if isinstance(content, dict) else ""
            if not array.exists():
                return StoredMask(str(text), str(text).rpartition("v=")[2])
            values = np.load(array, allow_pickle=False)
        except FileNotFoundError as error:
            raise VolumeError("missing", f"has no {Path(error.filename).name} beside it", "move it away") from error
        except (OSError, ValueError, EOFError) as error:
            raise VolumeError("unreadable", f"cannot be read ({error})", "move it away") from error
        return StoredMask(str(text) if is_mask_type(values.dtype) else "", voxel_digest(values))
