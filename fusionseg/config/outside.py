"""Import of a user's own part by its dotted path, `package.module:Attribute`."""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from fusionseg.utils.errors import suggest

FORM = "package.module:Attribute"


class PartError(ValueError):
    """A named part cannot be used. The message does not begin with a key: the caller that knows the key adds it."""


@dataclass(frozen=True)
class OutsideSource:
    """The origin of a part from outside, as a run records it."""

    version: str
    """Distribution and version ("monai 1.5.0"), or the hash of the source file ("sha256:0123456789ab")."""
    found_in: str | None
    """Folder from which the module is imported; None for an installed package."""


def is_outside(name: object) -> bool:
    """Tell whether a name is a dotted path, and not the name of a built-in part."""
    return isinstance(name, str) and ":" in name


def import_part(path: str, found_in: str | None = None) -> Any:
    """Import the callable that a dotted path names.

    The module is looked up in `found_in` first, then in the working directory, then where Python looks.

    Args:
        path: `package.module:Attribute`, or `folder/file.py:Attribute` relative to the working directory.
        found_in: the folder that a run has recorded.

    Raises:
        PartError: the path is malformed, the module is missing or fails, or the attribute is missing or not callable.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or not all(part.isidentifier() for part in attribute.split(".")):
        raise PartError(f"{path!r} is not a path to a part (expected {FORM}); correct it")
    module = _import_module(module_name, found_in)
    part: Any = module
    for name in attribute.split("."):
        if not hasattr(part, name):
            public = sorted(entry for entry in vars(part) if not entry.startswith("_"))
            hint = f"; {suggest(name, public, listed=len(public) < 40)}"
            raise PartError(f"module {module.__name__} ({_file_of(module)}) has no {attribute!r}{hint.rstrip('; ')}")
        part = getattr(part, name)
    if not callable(part):
        raise PartError(
            f"{path} cannot be called (expected a class or a function, got {type(part).__name__}); name another"
        )
    return part


def source_of(path: str, found_in: str | None = None) -> OutsideSource:
    """The version and the folder of a part from outside.

    Args:
        path, found_in: see `import_part`.

    Raises:
        PartError: see `import_part`.
    """
    part = import_part(path, found_in)
    module = _import_module(path.partition(":")[0], found_in)
    file = getattr(module, "__file__", None)
    top = module.__name__.partition(".")[0]
    if file is None or is_installed(Path(file)):
        return OutsideSource(_distribution(top), None)
    folder = Path(file).resolve().parents[module.__name__.count(".") + (Path(file).name == "__init__.py")]
    # A package often re-exports what another of its modules defines: both files belong to the part.
    defined_in = getattr(sys.modules.get(getattr(part, "__module__", "")), "__file__", None)
    files = {Path(file).resolve()}
    if defined_in is not None and Path(defined_in).resolve().is_relative_to(folder):
        files.add(Path(defined_in).resolve())
    content = b"\0".join(entry.read_bytes() for entry in sorted(files))
    if path.partition(":")[0].endswith(".py"):  # relative to the working directory, also in the recorded form
        folder = Path(found_in) if found_in is not None else Path.cwd()
    return OutsideSource(f"sha256:{hashlib.sha256(content).hexdigest()[:12]}", str(folder))


def _import_module(name: str, found_in: str | None) -> ModuleType:
    """Import a module by its dotted name or by the path of its file."""
    folders = [Path(found_in)] if found_in is not None else []
    folders.append(Path.cwd())
    if name.endswith(".py"):
        file = next((path for folder in folders if (path := folder / name).is_file()), None)
        if file is None:
            raise PartError(f"there is no file {folders[0] / name}; correct the path")
        folders, name = [file.resolve().parent], file.stem
    if not all(part.isidentifier() for part in name.split(".")):
        raise PartError(f"{name!r} is not the name of a module (expected {FORM}); correct it")
    with searched_first(folders):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                looked = " and in ".join(map(str, dict.fromkeys(folders)))
                raise PartError(
                    f"there is no module {error.name} (looked in {looked}, and among the installed packages);"
                    " correct the path, start the command in the folder that holds it, or set PYTHONPATH"
                ) from None
            raise PartError(_failure(name, error)) from error
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            raise PartError(_failure(name, error)) from error
    _refuse_namesake(module, folders[0] if found_in is not None or len(folders) == 1 else None)
    return module


@contextmanager
def searched_first(folders: list[Path]) -> Iterator[None]:
    """Put folders first in the module search path. After the body they are last, for imports in a user's function."""
    added = [str(folder) for folder in folders if folder.is_dir()]
    before = list(sys.path)
    sys.path[:0] = added
    importlib.invalidate_caches()  # the file may be newer than Python's cached listing of its folder
    try:
        yield
    finally:
        del sys.path[: len(added)]
        sys.path.extend(folder for folder in dict.fromkeys(added) if folder not in before)


def _refuse_namesake(module: ModuleType, folder: Path | None) -> None:
    """Refuse a module of the right name from another folder, if the wanted folder has a module of this name too.

    Raises:
        PartError: another module of this name is already imported.
    """
    file = getattr(module, "__file__", None)
    if folder is None or file is None or Path(file).resolve().is_relative_to(folder.resolve()):
        return
    wanted = folder.joinpath(*module.__name__.split("."))
    if wanted.with_suffix(".py").is_file() or (wanted / "__init__.py").is_file():
        raise PartError(
            f"two modules are called {module.__name__}: {file} is imported already, and {wanted} is needed; rename one"
            " of them, or use them in separate commands"
        )


def failure_location(error: BaseException) -> str:
    """Locate an exception ("nets.py, line 3"): its last traceback line in the user's files, or else in a library."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}"
    ours = (str(Path(__file__).parents[1]), importlib.__file__, "<frozen")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    users = [frame for frame in frames if not is_installed(Path(frame.filename))]
    last = (users or frames)[-1] if frames else None
    return "" if last is None else f"{last.filename}, line {last.lineno}"


def failure_text(error: BaseException) -> str:
    """Format an exception of the user's code as one line, with its location."""
    message = error.msg if isinstance(error, SyntaxError) else error
    text = f"{type(error).__name__}: {message}".partition("\n")[0]
    location = failure_location(error)
    return f"{location}: {text}" if location else text


def _failure(name: str, error: BaseException) -> str:
    return f"module {name} cannot be imported: {failure_text(error)}; correct the module"


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built-in"


def is_installed(file: Path) -> bool:
    """Tell whether a file belongs to Python or to an installed package, and not to the user."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    resolved = file.resolve()
    inside = any(folder and resolved.is_relative_to(Path(folder).resolve()) for folder in folders)
    return inside or bool({"site-packages", "dist-packages"} & set(resolved.parts))


def _distribution(top: str) -> str:
    """Name and version of the distribution that a top-level package belongs to, such as "monai 1.5.0"."""
    if top in sys.stdlib_module_names:
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        return f"{top} {version(top)}"
    except PackageNotFoundError:
        pass
    names = packages_distributions().get(top, [])
    return f"{names[0]} {version(names[0])}" if names else f"{top} of unknown version"
