"""The export of runs as one archive (`model.fseg`) that another fusionseg predicts with."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fusionseg.config import validate
from fusionseg.config.outside_part import outside_parts
from fusionseg.data.preprocessing.record import SourceFile
from fusionseg.export.card.files import card_documents
from fusionseg.export.contract import contract_of, weights_hash
from fusionseg.export.export import ExportOptions
from fusionseg.export.parity import LIMIT, cases_to_compare, compare_masks, not_compared
from fusionseg.export.postprocessing import postprocessing_documents
from fusionseg.inference.evaluation.cases import evaluation_config
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.inference.trained_network import TrainedNetwork, load_all_trained, task_of
from fusionseg.runs.archive.anonymous import anonymous_config
from fusionseg.runs.archive.layout import CONTRACT, SUFFIX
from fusionseg.runs.archive.reader import count_networks
from fusionseg.runs.archive.trust import trusted_config
from fusionseg.runs.archive.writer import ArchivedNetwork, write_archive
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.trust.links import refuse_links
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import json_text, partial_path, writable_file
from fusionseg.utils.logs import RESULT

log = logging.getLogger("fusionseg")

FORMAT = "fseg"


@dataclass(frozen=True)
class Archived:
    """The result of an export as an archive."""

    path: Path
    parity: JsonObject
    """The comparison of its masks with those of the runs."""

    @property
    def is_equal(self) -> bool:
        """False if the masks differ. The archive is not written then."""
        return bool(self.parity["different"] == 0)


def export_archive(runs: Sequence[Path], options: ExportOptions) -> Archived:
    """Export a run, or several runs as an ensemble, as an archive.

    Args:
        runs: run folders, checkpoint files or archives.
        options: the options of the export; `output` is a file.

    Raises:
        UserError: a run cannot be exported, an option or a setting is wrong, or the file cannot be written or replaced.
        WriteError: the disk is full, for example.
    """
    if problems := options.problems():
        raise UserError(problems)
    path = archive_path(runs, options.output)
    if options.overrides:
        evaluation_config(runs[0], options.overrides)  # a wrong setting is refused before the export
    predictor, members = _load(runs, options.checkpoint)
    name = members[0].config.name
    steps = {member.path: member.step for member in members}
    documents = card_documents(runs, options.licence, steps) if predictor is not None else {}
    if predictor is not None:
        documents[CONTRACT] = json_text(
            {**contract_of(predictor, name=name, licence=options.licence), "format": FORMAT}
        )
        documents |= postprocessing_documents(runs)
    temporary = partial_path(path)
    try:
        networks = [_archived(member) for member in members]
        write_archive(temporary, networks, documents, {"name": name, "licence": options.licence})
        archived = Archived(path, _compare(runs, options, members, predictor, temporary))
        if archived.is_equal:
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    _report(archived, members)
    return archived


def archive_path(runs: Sequence[Path], output: Path | None) -> Path:
    """Choose the file of an archive, and make sure that it can be written or replaced.

    Args:
        runs: run folders, checkpoint files or archives.
        output: the file that the user named; None is a file in the run folder.

    Raises:
        UserError: none is named for several runs; it does not end in .fseg; another file is there; it cannot be
            written; or a file of a run is a link to a file elsewhere.
    """
    refuse_links(*runs)
    if output is None:
        if len(runs) > 1 or not runs[0].is_dir():
            raise UserError(f"--output: is missing; name the file, such as -o model{SUFFIX}")
        output = runs[0] / f"{runs[0].resolve().name}{SUFFIX}"
    if output.suffix != SUFFIX:
        raise UserError(f"--output: {output}: expected a file that ends in {SUFFIX}, such as {output.name}{SUFFIX}")
    path = Path(os.path.realpath(output))
    if path.is_file():
        try:
            count_networks(path)
        except UserError as error:
            raise UserError(f"--output: an archive would replace another file; move it away ({error})") from None
    writable_file(path, "--output")
    return path


def _load(runs: Sequence[Path], checkpoint: str) -> tuple[Predictor | None, Sequence[TrainedNetwork]]:
    """Load the networks. A single network need not predict masks, and has no predictor then."""
    if len(runs) == 1 and task_of(runs[0], checkpoint).evaluation != "masks":
        return None, load_all_trained(runs[0], torch.device("cpu"), checkpoint, precision="fp32")
    predictor = Predictor(runs, PredictOptions("cpu", checkpoint, precision="fp32"))
    return predictor, predictor.members


def _archived(member: TrainedNetwork) -> ArchivedNetwork:
    config = member.config.to_dict()
    return ArchivedNetwork(member.model.state_dict(), config, member.channels, member.labels, member.step, member.split)


def _compare(
    runs: Sequence[Path],
    options: ExportOptions,
    members: Sequence[TrainedNetwork],
    predictor: Predictor | None,
    archive: Path,
) -> JsonObject:
    """Read an archive, and compare its weights and its masks with those of the runs.

    Raises:
        UserError: the archive does not give the networks that were written.
    """
    try:
        for member in members:
            _import_parts(member, options.output or Path(member.config.name))
    except UserError as error:
        log.warning("who predicts with it has to allow code from outside: %s", error)
        return not_compared(str(error))
    found = load_all_trained(archive, torch.device("cpu"), precision="fp32")
    for one, other in zip(members, found, strict=True):
        if weights_hash(one.model.state_dict()) != weights_hash(other.model.state_dict()):
            raise UserError(f"{one.path}: the archive has other weights than the run; report this with the run")
    if predictor is None or options.cases == 0:
        return not_compared("--cases 0" if options.cases == 0 else "the networks give no masks")
    try:
        cases = cases_to_compare(runs[0], options.overrides, predictor, options.cases, complete=False)
    except UserError as error:
        log.warning("its masks are not compared with those of predict: %s", error)
        return not_compared(str(error))
    log.info("comparing the masks of %d %s cases with those of predict", len(cases.cases), cases.which)
    archived = Predictor([archive], PredictOptions("cpu", precision="fp32"))
    return {"limit": LIMIT, **compare_masks(cases, lambda case: predictor(case.images), lambda c: archived(c.images))}


def _import_parts(member: TrainedNetwork, archive: Path) -> None:
    """Import the parts from outside of a network as a prediction with the archive would.

    Args:
        member: the network.
        archive: for the message.

    Raises:
        UserError: the configuration in the archive names code that is not trusted, or is not found.
    """
    plain = trusted_config(anonymous_config(member.config.to_dict()), archive)
    if any(outside_parts(member.config)):
        validate(plain, recorded=True)


def _report(archived: Archived, members: Sequence[TrainedNetwork]) -> None:
    parity = archived.parity
    if not archived.is_equal:
        log.error(
            "%s: not written: %d of %d voxels differ from the masks of predict",
            archived.path,
            parity["different"],
            parity["voxels"],
        )
        return
    if parity["voxels"]:
        log.log(
            RESULT,
            "%d of %d voxels differ from the masks of predict (%d %s cases)",
            parity["different"],
            parity["voxels"],
            len(parity["cases"]),
            parity["which"],
        )
    size = archived.path.stat().st_size
    digest = SourceFile.read(archived.path).sha256
    count = "one network" if len(members) == 1 else f"{len(members)} networks"
    log.log(RESULT, "%s: %s, %s bytes, sha256 %s", archived.path, count, f"{size:,}", digest)
