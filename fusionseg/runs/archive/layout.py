"""Names of the files in an archive, and its version."""

from __future__ import annotations

import re
from pathlib import Path

from fusionseg.runs.paths import CARD, CLAIM, POSTPROCESSING

SUFFIX = ".fseg"
VERSION = 1
"""Version of the layout. An archive of another version is refused."""
MANIFEST = "manifest.json"
"""Version, name, licence, and the size and the hash of every other file."""
CONTRACT = "contract.json"
DOCUMENTS = (CONTRACT, CARD, CLAIM, POSTPROCESSING)
"""Files that an archive may have. A prediction reads the post-processing alone, and only on request."""
CONFIG, NETWORK, WEIGHTS = "config.json", "network.json", "weights.safetensors"
"""Files of each network."""
_KNOWN = re.compile(
    rf"{re.escape(MANIFEST)}|{'|'.join(map(re.escape, DOCUMENTS))}"
    rf"|networks/(0|[1-9]\d{{0,3}})/({'|'.join(map(re.escape, (CONFIG, NETWORK, WEIGHTS)))})"
)


def is_archive(path: Path) -> bool:
    """Tell whether a path is that of an archive, by its name."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def is_known(name: str) -> bool:
    """Tell whether an archive may have a file of this name. Names of other folders are not among them."""
    return _KNOWN.fullmatch(name) is not None


def network_file(index: int, name: str) -> str:
    """The name of a file of a network.

    Args:
        index: of the network, from 0.
        name: `CONFIG`, `NETWORK` or `WEIGHTS`.
    """
    return f"networks/{index}/{name}"
