"""Commands about networks and configurations: `models` and `schema`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE


def add_models(commands: Commands) -> None:
    parser = add_command(
        commands,
        "models",
        "list the networks with their parameters, multiply-adds and activation memory, for one sample in 32-bit floats",
        "fusionseg models swin_unetr nnunet_plain --patch 128 128 128",
        _models,
    )
    parser.add_argument(
        "what", nargs="*", metavar="NAME", help="only these networks; with --config, key.path=value over the file"
    )
    parser.add_argument(
        "--config",
        metavar="FILE|NAME",
        help="YAML file of a run, or the name of a shipped one: cost its network, on its data.patch",
    )
    parser.add_argument(
        "--patch", nargs=3, type=int, metavar=("X", "Y", "Z"), help="voxels (default 96 96 96, or the configuration's)"
    )
    parser.add_argument("--in-channels", type=int, default=1, help="channels of the volumes (default 1)")
    parser.add_argument("--classes", type=int, default=2, help="classes, background included (default 2)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table that says what each one is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the list as JSON too")


def _models(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.config import load_config
        from fusionseg.models.network_list import default_configs, list_networks, to_json, to_markdown, to_text
        from fusionseg.utils.files import writable_file, write_json

    patch = tuple(arguments.patch or (96, 96, 96))
    checkpoint_activations = False
    if min(*patch, arguments.in_channels, arguments.classes) < 1:
        raise UserError(
            f"--patch, --in-channels, --classes: expected integers of at least 1, got {patch}, {arguments.in_channels},"
            f" {arguments.classes}"
        )
    if arguments.json is not None:
        writable_file(arguments.json, "--json")
    if arguments.config is None:
        configs = default_configs(arguments.what)
    else:
        config = load_config(arguments.config, arguments.what)
        configs, checkpoint_activations = [config.model], config.train.checkpoint_activations
        patch = patch if arguments.patch else config.data.patch
    listed = list_networks(
        configs,
        patch,
        in_channels=arguments.in_channels,
        out_channels=arguments.classes,
        checkpoint_activations=checkpoint_activations,
    )
    print(to_markdown(listed) if arguments.markdown else to_text(listed))
    if arguments.json is not None:
        write_json(arguments.json, to_json(listed))
    return DONE


def add_schema(commands: Commands) -> None:
    parser = add_command(
        commands,
        "schema",
        "print the JSON schema of a configuration, for editors that complete and check YAML",
        "fusionseg schema > fusionseg.schema.json",
        _schema,
    )
    parser.add_argument("--markdown", action="store_true", help="print the reference of all keys as Markdown tables")
    parser.add_argument("--output", type=Path, help="write it to this file instead")


def _schema(arguments: argparse.Namespace) -> int:
    from fusionseg.config.reference import reference_tables
    from fusionseg.config.short_forms import file_schema
    from fusionseg.utils.files import writable_file, write_json

    if arguments.markdown:
        print(reference_tables())
    elif arguments.output is not None:
        writable_file(arguments.output, "--output")
        write_json(arguments.output, file_schema())
    else:
        print(json.dumps(file_schema(), indent=1))
    return DONE
