"""Packages for a machine without network: make a folder of wheels here, and install from it there what is missing.

    python profiling/wheels.py make WHEELS [--python 3.12] [--have PIP_LIST] [--extra bench]   # needs the network
    python profiling/wheels.py install WHEELS SITE                                             # needs no network

`make` downloads what fusionseg requires (setup.cfg, versions of constraints.txt), and what that requires, for CPython
on Linux x86_64. It leaves out torch, NumPy, and all that only torch requires: the machine has its own. It leaves out
packages that have become modules of Python, such as argparse. `--have` takes
the output of `pip list` on the machine, and leaves out what it has in a version that fits.

`install` puts into the folder SITE what this Python lacks, or has in a version that does not fit. It changes no
installed package. Start Python with PYTHONPATH=SITE; profiling/gpu_checks.sh --wheels WHEELS does both.
"""

from __future__ import annotations

import argparse
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any

from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:  # a bare environment has pip's copy only
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    from pip._vendor.packaging.utils import canonicalize_name  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
OF_THE_MACHINE = frozenset({"torch", "torchvision", "numpy", "triton"})
"""Packages that are neither downloaded nor installed, and whose requirements are theirs."""
SHADOWS = frozenset(sys.stdlib_module_names)
"""Packages of the name of a standard module, such as argparse 1.4: on PYTHONPATH they would take its place."""
GLIBC = range(5, 29)  # manylinux_2_5 to manylinux_2_28: runs on RHEL 8, Debian 11, Ubuntu 20.04 and later


def required(extras: Iterable[str] = ()) -> list[str]:
    """The requirements of fusionseg in setup.cfg, with those of the extras.

    Raises:
        UserError: an extra does not exist.
    """
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    known = settings["options.extras_require"]
    unknown = [name for name in extras if name not in known]
    if unknown:
        raise UserError(f"--extra: unknown (expected some of {', '.join(known)}, got {', '.join(unknown)})")
    texts = [settings["options"]["install_requires"], *(known[name] for name in extras)]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pins() -> dict[str, str]:
    """The versions in constraints.txt by the name of the package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version.strip() for name, version in pairs}


class Wheel:
    """A wheel file: name, version and requirements from its metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            fields = Parser().parsestr(archive.read(name).decode())
        self.name = canonicalize_name(fields["Name"])
        self.version = str(fields["Version"])
        self.requires = [str(text) for text in fields.get_all("Requires-Dist") or []]


def wheels_in(folder: Path) -> dict[str, Wheel]:
    """The wheels of a folder by the name of the package.

    Raises:
        UserError: the folder has no wheels, or two versions of a package.
    """
    found: dict[str, Wheel] = {}
    for path in sorted(folder.glob("*.whl")):
        wheel = Wheel(path)
        if wheel.name in found:
            raise UserError(
                f"{folder}: two wheels of {wheel.name}; remove {path.name} or {found[wheel.name].path.name}"
            )
        found[wheel.name] = wheel
    if not found:
        raise UserError(f"{folder}: no wheels; make the folder with: python profiling/wheels.py make {folder}")
    return found


def closure(
    texts: Iterable[str], provide: Callable[[Any], Iterable[str]], environment: dict[str, str] | None = None
) -> None:
    """Call `provide` for each requirement and for the requirements that it returns, once for each text.

    Args:
        texts: requirements, as in the metadata of a package.
        provide: takes a requirement and returns the requirements of the package that it chose for it.
        environment: values for the markers that differ from those of this Python.
    """
    waiting, seen = [(text, "") for text in texts], set()
    while waiting:
        text, extra = waiting.pop(0)
        if (text, extra) in seen:
            continue
        seen.add((text, extra))
        requirement = Requirement(text)
        values = {**(environment or {}), "extra": extra}
        if canonicalize_name(requirement.name) in OF_THE_MACHINE | SHADOWS:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate(values):
            continue
        needs = list(provide(requirement))
        waiting += [(need, wanted) for need in needs for wanted in ("", *requirement.extras)]


def make(folder: Path, python: str, have: Path | None, extras: list[str]) -> int:
    """Download the wheels to `folder`, and return the exit status.

    Args:
        folder: wheels that are there already are kept.
        python: version of the machine's Python, such as 3.12.
        have: file with the output of `pip list` on the machine.
        extras: extras of setup.cfg to take in.

    Raises:
        UserError: a package has no wheel for this platform.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise UserError(f"--python: no version of Python (expected one like 3.12, got {python!r})")
    there = {} if have is None else listed(have)
    versions, wanted = pins(), required(extras)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {wheel.name: wheel for wheel in map(Wheel, folder.glob("*.whl"))}
    left_out: dict[str, str] = {}

    def provide(requirement: Any) -> list[str]:
        name = canonicalize_name(requirement.name)
        fits = name in there and requirement.specifier.contains(there[name], prereleases=True)
        # With extras the wheel is needed for its metadata: `pip list` does not say what the extras require.
        if fits and not requirement.extras and name not in chosen:
            left_out[name] = there[name]
            return []
        if name not in chosen:
            left_out.pop(name, None)
            pinned = versions.get(name)
            chosen[name] = download(f"{name}=={pinned}" if pinned else str(requirement).split(";")[0], folder, python)
        return chosen[name].requires

    full = f"{python}.0"
    closure(wanted, provide, {"python_version": python, "python_full_version": full, "sys_platform": "linux",
                              "platform_system": "Linux", "platform_machine": "x86_64"})  # fmt: skip
    size = sum(wheel.path.stat().st_size for wheel in chosen.values()) / 2**20
    if left_out:
        print("left out, because the machine has them: " + ", ".join(f"{n} {v}" for n, v in sorted(left_out.items())))
    print(f"{folder}: {len(chosen)} wheels, {size:.1f} MiB, for Python {python} on Linux x86_64")
    return 0


def download(requirement: str, folder: Path, python: str) -> Wheel:
    """Download one wheel for the machine.

    Raises:
        UserError: pip finds none.
    """
    before = set(folder.glob("*.whl"))
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in reversed(GLIBC)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", *(f"--platform={name}" for name in platforms)]
    print(requirement, file=sys.stderr, flush=True)
    done = subprocess.run([*command, "-d", str(folder), requirement], capture_output=True, text=True)
    if done.returncode:  # no wheel on the registry: a pure package may be built here
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), requirement]
        subprocess.run(command, capture_output=True, text=True)
    new = sorted(set(folder.glob("*.whl")) - before)
    if len(new) != 1 or (done.returncode and not new[0].name.endswith("-none-any.whl")):
        for path in new:
            path.unlink()
        raise UserError(f"{requirement}: no wheel for Python {python} on Linux x86_64:\n{done.stderr.strip()}")
    return Wheel(new[0])


def listed(file: Path) -> dict[str, str]:
    """Versions by package, from the output of `pip list` (columns, or name==version)."""
    pairs = (re.split(r"==|\s+", line.strip())[:2] for line in file.read_text(encoding="utf-8").splitlines())
    found = {str(canonicalize_name(pair[0])): pair[1] for pair in pairs if len(pair) == 2 and re.match(r"\d", pair[1])}
    if not found:
        raise UserError(f"--have: {file} has no packages (expected the output of `pip list`)")
    return found


def install(folder: Path, site: Path, extras: Iterable[str] = ()) -> list[str]:
    """Install what this Python lacks into a folder of its own; return names and versions.

    Args:
        folder: wheels.
        site: folder for PYTHONPATH; it is made anew, unless it has exactly what is needed.
        extras: extras of setup.cfg whose requirements are installed too, where the folder has them.

    Raises:
        UserError: the folder lacks a package, or pip fails.
    """
    wheels, needed, problems = wheels_in(folder), dict[str, Wheel](), []

    def provide(requirement: Any) -> Iterable[str]:
        name = canonicalize_name(requirement.name)
        try:
            found = None if name in needed else metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found = None
        if found is not None and requirement.specifier.contains(found.version.split("+")[0], prereleases=True):
            return found.requires or []
        wheel = needed.get(name) or wheels.get(name)
        if wheel is None or not requirement.specifier.contains(wheel.version, prereleases=True):
            has = f"{wheel.version} in {folder}" if wheel else "no wheel"
            problems.append(f"{name}: missing here (expected {requirement}, got {has}); make the folder again")
            return []
        needed[name] = wheel
        return wheel.requires

    optional = {canonicalize_name(Requirement(text).name) for text in required(extras)} & set(wheels)
    closure([*required(), *(text for text in required(extras) if _name(text) in optional)], provide)
    if problems:
        raise UserError(problems)
    if needed and _installed(site) != {name: wheel.version for name, wheel in needed.items()}:
        shutil.rmtree(site, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--target", str(site), *(str(w.path) for w in needed.values())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{folder}: pip could not install the wheels:\n{done.stderr.strip()}")
    return [f"{name} {wheel.version}" for name, wheel in sorted(needed.items())]


def _name(text: str) -> str:
    return str(canonicalize_name(Requirement(text).name))


def _installed(site: Path) -> dict[str, str]:
    """Versions by package of a folder."""
    found = metadata.distributions(path=[str(site)]) if site.is_dir() else ()
    return {str(canonicalize_name(one.metadata["Name"])): one.version for one in found}


def main() -> int:
    """Make the folder or install from it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="download the wheels; needs the network")
    making.add_argument("wheels", type=Path, help="folder of the wheels")
    making.add_argument("--python", default="3.12", help="version of the machine's Python (default: 3.12)")
    making.add_argument("--have", type=Path, metavar="FILE", help="output of `pip list` on the machine")
    making.add_argument("--extra", nargs="+", default=[], metavar="NAME", help="extras of setup.cfg, such as bench")
    installing = commands.add_parser("install", help="install what is missing; needs no network")
    installing.add_argument("wheels", type=Path, help="folder of the wheels")
    installing.add_argument("site", type=Path, help="folder to install into; put it on PYTHONPATH")
    installing.add_argument("--extra", nargs="+", default=[], metavar="NAME", help="extras of setup.cfg, such as bench")
    arguments = parser.parse_args()

    def work() -> int:
        if arguments.command == "make":
            return make(arguments.wheels, arguments.python, arguments.have, arguments.extra)
        done = install(arguments.wheels, arguments.site, arguments.extra)
        print(f"{arguments.site}: {', '.join(done)}" if done else "nothing is missing")
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
