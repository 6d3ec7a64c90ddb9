"""The command `manifest`: a configuration or a sweep as jobs of Kubernetes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.utils.exit_status import DONE

if TYPE_CHECKING:
    from fusionseg.cluster.kubernetes.job import KubernetesJob


def add_manifest(commands: Commands) -> None:
    parser = add_command(
        commands,
        "manifest",
        "write a run, or each run of a sweep, as a PyTorchJob for Kubernetes, to be given to kubectl",
        """fusionseg manifest parse_fusion_od --cluster kubernetes --image registry.example.org/fusionseg:0.1 \\
    --claim datasets=/data:ro --claim scratch=/scratch \\
    data.root=/data/PARSE output=/scratch/runs train.global_batch=8 > job.yaml
  kubectl apply -f job.yaml""",
        _manifest,
    )
    parser.add_argument(
        "config", metavar="CONFIG|SWEEP", help="YAML file of a run or of a sweep, or the name of a shipped one"
    )
    parser.add_argument(
        "--cluster",
        required=True,
        metavar="FILE|NAME",
        help="cluster profile: a YAML file, or the name of a shipped one; it may be one of SLURM",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="for all runs, with paths as in the pods; cluster.KEY=value is for the profile",
    )
    parser.add_argument("--image", metavar="IMAGE", help="image of the pods (kubernetes.image of the profile)")
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        type=_claim,
        metavar="NAME=/PATH[:ro]",
        help="mount a persistent volume claim, with :ro read-only, beside the profile's kubernetes.claims; may be"
        " repeated",
    )


def _claim(text: str) -> tuple[str, str]:
    name, found, path = text.partition("=")
    if not (name and found and path):
        raise argparse.ArgumentTypeError(f"expected NAME=/PATH, such as scratch=/scratch, got {text!r}")
    return name, path


def _manifest(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.cluster.kubernetes.checks import check_jobs
        from fusionseg.cluster.kubernetes.manifest import manifest_text

    jobs = _jobs(arguments)
    check_jobs(jobs)
    print("---\n".join(map(manifest_text, jobs)), end="")
    return DONE


def _jobs(arguments: argparse.Namespace) -> list[KubernetesJob]:
    """The runs of the configuration or of the sweep, each with its cluster profile.

    Raises:
        UserError: with all problems of the files.
    """
    from fusionseg.cluster.kubernetes.job import KubernetesJob
    from fusionseg.cluster.profile import load_cluster
    from fusionseg.cluster.resources.of_runs import with_resources
    from fusionseg.cluster.sweep import load_sweep
    from fusionseg.commands.submission import split_overrides
    from fusionseg.config import load_config
    from fusionseg.utils.errors import Problems, UserError

    of_profile, of_runs = split_overrides(arguments.overrides)
    of_profile += _settings(arguments.image, arguments.claim)
    sweep, problems = None, Problems()
    with problems.collect():
        cluster = load_cluster(arguments.cluster, of_profile)
    with problems.collect():
        if _is_sweep(arguments.config):
            sweep = load_sweep(arguments.config, of_runs)
        else:
            config = load_config(arguments.config, of_runs)
    problems.raise_if_any()
    if sweep is None:
        return [KubernetesJob(config, cluster)]
    if sweep.search is not None:
        raise UserError(
            f"{arguments.config}: search: a search waits for the runs of each rung, which a manifest cannot do: remove"
            " it, or use fusionseg submit"
        )
    sweep = with_resources(sweep, arguments.cluster, cluster, of_profile)
    return [KubernetesJob(run.config, run.cluster or cluster, sweep.folder.name) for run in sweep.runs]


def _settings(image: str | None, claims: Sequence[tuple[str, str]]) -> list[str]:
    """The options as settings of the profile.

    Raises:
        UserError: a claim is given twice.
    """
    from fusionseg.utils.errors import UserError

    paths: dict[str, list[str]] = {}
    for name, path in claims:
        paths.setdefault(name, []).append(path)
    if twice := [name for name, found in paths.items() if len(found) > 1]:
        raise UserError(
            [f"--claim {name}: is given for {' and '.join(paths[name])}: a claim has one path" for name in twice]
        )
    settings = [] if image is None else [f"kubernetes.image={json.dumps(image)}"]
    if claims:
        settings.append(f"kubernetes.claims={json.dumps(dict(claims))}")
    return settings


def _is_sweep(given: str) -> bool:
    """Tell whether a file, or the name of a shipped one, is a sweep.

    Raises:
        UserError: the file is not valid YAML.
    """
    from fusionseg.cluster.sweep_file import SweepConfig
    from fusionseg.config.shipped.lookup import CONFIG, SWEEP, find_file
    from fusionseg.config.yaml_location import read_yaml
    from fusionseg.utils.errors import UserError

    try:
        path = find_file(CONFIG, given)
    except UserError:
        try:
            find_file(SWEEP, given)
        except UserError:
            return False  # the loading reports it, with the nearest names
        return True
    keys = {field.alias or name for name, field in SweepConfig.model_fields.items()} - {"name"}
    return bool(keys & read_yaml(path)[0].keys())
