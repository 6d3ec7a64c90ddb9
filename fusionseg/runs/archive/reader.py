"""The reader of archives. Nothing is unpacked to disk, and no file is used before its hash was compared.

All files of an archive are stored without compression, so that none is larger than the archive itself.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionseg.runs.archive.layout import CONFIG, DOCUMENTS, MANIFEST, NETWORK, VERSION, WEIGHTS, is_known, network_file
from fusionseg.runs.archive.trust import trusted_config
from fusionseg.utils.errors import UserError
from fusionseg.utils.version import __version__

_KINDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "channels": list,
    "labels": dict,
    "split": (dict, type(None)),
}


def count_networks(path: Path) -> int:
    """The number of networks in an archive.

    Raises:
        UserError: the archive cannot be used.
    """
    with _opened(path) as archive:
        return archive.networks


def read_config(path: Path, index: int = 0) -> dict[str, Any]:
    """Read the plain configuration of a network.

    Args:
        path: the archive.
        index: of the network.

    Raises:
        UserError: the archive cannot be used, or the configuration names code that is not trusted.
    """
    with _opened(path) as archive:
        return trusted_config(archive.read_object(network_file(index, CONFIG)), path)


def read_network(path: Path, index: int | None = None) -> dict[str, Any]:
    """Read a network, with the entries of a checkpoint that a prediction needs.

    Args:
        path: the archive.
        index: of the network; None for the only one.

    Raises:
        UserError: the archive cannot be used, its configuration names code that is not trusted, or it has several
            networks and `index` is None.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    with _opened(path) as archive:
        if index is None and archive.networks > 1:
            raise UserError(
                f"{path}: holds {archive.networks} networks (an ensemble), and one is expected; export one run"
            )
        index = index or 0
        config = trusted_config(archive.read_object(network_file(index, CONFIG)), path)
        facts = archive.read_object(network_file(index, NETWORK))
        try:
            weights = load(archive.read(network_file(index, WEIGHTS)))
        except SafetensorError as error:
            raise archive.damaged(f"{network_file(index, WEIGHTS)}: {error}") from None
    if wrong := [name for name, kind in _KINDS.items() if not isinstance(facts.get(name), kind)]:
        raise archive.damaged(f"{network_file(index, NETWORK)}: {', '.join(wrong)}: missing or of another type")
    split = {} if facts["split"] is None else {"split": facts["split"]}
    known = {name: facts[name] for name in ("step", "channels", "labels")}
    return {**known, "config": config, "model": weights, **split}


def read_document(path: Path, name: str) -> dict[str, Any] | None:
    """Read a JSON document of an archive.

    Args:
        path: the archive.
        name: one of `DOCUMENTS`.

    Returns:
        Its object; None if the archive has no such document.

    Raises:
        UserError: the archive cannot be used, or the document is damaged.
    """
    with _opened(path) as archive:
        return archive.read_object(name) if archive.has(name) else None


class _Archive:
    """An open archive whose list of files was compared with its manifest."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self._path, self._file = path, file
        self._check_entries()
        self._files: dict[str, Any] = {}
        manifest = self._parse(MANIFEST, self._content(MANIFEST))
        if not isinstance(version := manifest.get("fseg"), int):
            raise UserError(f"{path}: is no archive of fusionseg ({MANIFEST} has no version)")
        if version != VERSION:
            raise UserError(
                f"{path}: is an archive of version {version}, and fusionseg {__version__} reads version {VERSION};"
                " use the fusionseg that wrote it, or a newer one"
            )
        self.networks = self._check_manifest(manifest)
        for name in DOCUMENTS:  # small, and read by people without a comparison
            if name in self._files:
                self.read(name)

    def has(self, name: str) -> bool:
        """Tell whether the archive has a file."""
        return name in self._files

    def read(self, name: str) -> bytes:
        """Read a file and compare its hash.

        Raises:
            UserError: the hash differs.
        """
        if name not in self._files:
            raise self.damaged(f"{name} is missing")
        content = self._content(name)
        if hashlib.sha256(content).hexdigest() != self._files[name]:
            raise self.damaged(f"{name} has another hash than {MANIFEST} says")
        return content

    def read_object(self, name: str) -> dict[str, Any]:
        """Read a JSON file that holds an object; see `read`."""
        return self._parse(name, self.read(name))

    def damaged(self, reason: str) -> UserError:
        """The error about a damaged archive."""
        return UserError(f"{self._path}: damaged archive ({reason}); copy it again, or export the run again")

    def _check_entries(self) -> None:
        """Refuse names of other folders, repeated names, and files that grow when they are unpacked."""
        entries = self._file.infolist()
        names = [entry.filename for entry in entries]
        if MANIFEST not in names:
            raise UserError(f"{self._path}: is no archive of fusionseg ({MANIFEST} is missing)")
        if foreign := [name for name in names if not is_known(name)]:
            raise self.damaged(f"it has a file {foreign[0][:100]!r}, which no archive has")
        if len(set(names)) < len(names):
            raise self.damaged("it has two files of one name")
        if packed := [each for each in entries if each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1]:
            raise self.damaged(f"{packed[0].filename} is compressed or encrypted, which no archive has")
        if sum(entry.file_size for entry in entries) > self._path.stat().st_size:
            raise self.damaged("its files are larger than the archive")

    def _check_manifest(self, manifest: dict[str, Any]) -> int:
        """Compare the list of files, keep their hashes, and return the number of networks."""
        files, count = manifest.get("files"), manifest.get("networks")
        if not isinstance(files, dict) or not isinstance(count, int) or not 1 <= count <= len(self._file.namelist()):
            raise self.damaged(f"{MANIFEST}: expected files and the number of networks")
        found = {name for name in self._file.namelist() if name != MANIFEST}
        needed = {network_file(index, name) for index in range(count) for name in (CONFIG, NETWORK, WEIGHTS)}
        for wrong, reason in ((files.keys() | needed) - found, "is missing"), (found - files.keys(), "has no hash"):
            if wrong:
                raise self.damaged(f"{min(wrong)} {reason}")
        self._files = {name: entry.get("sha256") if isinstance(entry, dict) else None for name, entry in files.items()}
        return count

    def _content(self, name: str) -> bytes:
        try:
            return self._file.read(name)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
            raise self.damaged(str(error)) from None

    def _parse(self, name: str, content: bytes) -> dict[str, Any]:
        try:
            value = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"{name}: {error}") from None
        if not isinstance(value, dict):
            raise self.damaged(f"{name}: expected an object")
        return value


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    """Open an archive.

    Raises:
        UserError: it is missing, damaged, of another version or no archive.
    """
    try:
        with zipfile.ZipFile(path) as file:
            yield _Archive(path, file)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such archive") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged archive ({error}); copy it again, or export the run again") from None
