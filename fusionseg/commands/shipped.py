"""`fusionseg configs`: list the files that are shipped with the package, or copy one of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command
from fusionseg.utils.exit_status import DONE


def add_configs(commands: Commands) -> None:
    parser = add_command(
        commands,
        "configs",
        "list the shipped configurations, sweeps, cluster profiles and scripts, or copy one to start from",
        "fusionseg configs\n  fusionseg configs copy hippocampus_unet",
        _list,
    )
    actions = parser.add_subparsers(metavar="copy")
    copy = actions.add_parser(
        "copy",
        help="write a copy of a shipped file, to start from",
        description="Write a copy of a shipped file. A file that exists is not replaced.",
        epilog="example:\n  fusionseg configs copy hippocampus_unet\n  fusionseg configs copy t4 clusters",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    copy.add_argument("name", metavar="NAME", help="a name from `fusionseg configs`")
    copy.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER", help="default: this folder")
    copy.set_defaults(work=_copy)


def _list(arguments: argparse.Namespace) -> int:
    from fusionseg.config.data.augmentation_presets import PRESETS
    from fusionseg.config.shipped.copies import description, shipped_scripts
    from fusionseg.config.shipped.lookup import KINDS

    for kind in KINDS:
        _print_section(
            f"{kind.noun}s", kind.use.format("NAME"), {name: description(kind.shipped(name)) for name in kind.names()}
        )
    _print_section("augmentation presets", "augment=NAME", {name: one.about for name, one in PRESETS.items()})
    scripts = {name: description(path) for name, path in shipped_scripts().items()}
    _print_section("scripts", "fusionseg configs copy NAME", scripts)
    print("A copy to start from: fusionseg configs copy NAME [FOLDER]")
    return DONE


def _print_section(title: str, use: str, described: dict[str, str]) -> None:
    width = max(map(len, described))
    print(f"{title} ({use})")
    for name, text in described.items():
        print(f"  {name:<{width}}  {text}")
    print()


def _copy(arguments: argparse.Namespace) -> int:
    from fusionseg.config.shipped.copies import copy_shipped

    print(f"{copy_shipped(arguments.name, arguments.folder)}: written")
    return DONE
