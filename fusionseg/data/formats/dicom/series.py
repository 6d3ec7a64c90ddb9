"""The one series of a folder: find its files, leave out scouts and reports, refuse several series."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.data.formats.dicom.folder import files_of_folder, is_wanted
from fusionseg.data.formats.dicom.headers import (
    SEGMENTATION,
    STRUCTURE_SET,
    VARYING,
    DicomFile,
    Slice,
    read_header,
)
from fusionseg.data.formats.image_file import FETCH, FileProblem, VolumeError
from fusionseg.utils.tables import counted

MAX_NAMED = 5
_ONE_FOLDER = "give each a folder of its own, or choose one by data.series of the run (description, or end of the UID)"


@dataclass(frozen=True)
class Series:
    """The files of one series.

    Args:
        files: headers of its files.
        problems: what was left out of the folder.
    """

    files: tuple[DicomFile, ...]
    problems: tuple[FileProblem, ...] = ()

    @property
    def slices(self) -> list[Slice]:
        """The slices of all files."""
        return [one for file in self.files for one in file.slices]

    @property
    def is_segmentation(self) -> bool:
        """True for a DICOM-SEG object."""
        return self.files[0].sop_class == SEGMENTATION


def find_series(path: Path, wanted: str | None = None) -> Series:
    """Read the headers of a folder, or of one file, and find the series.

    Args:
        path: the folder of a series, or a file with several frames.
        wanted: the series to read, as for `is_wanted`; None where the folder holds one.

    Raises:
        VolumeError: there is no series, or several; or a file is damaged.
    """
    if path.is_dir():
        headers = _read_headers(path, wanted)
    else:
        headers = [read_header(path)]
        if len(headers[0].slices) == 1 and headers[0].sop_class != SEGMENTATION:
            raise VolumeError(
                "dimensions", "the DICOM file holds a single slice", f"name the folder of the series: {path.parent}"
            )
    images = [header for header in headers if header.samples and header.sop_class != SEGMENTATION]
    if not images:
        return Series(tuple(_segmentation(headers)))
    chosen = [header for header in images if is_wanted(header, wanted)]
    if not chosen:
        every = "; ".join(_description(path, files) for files in _by_series(images))
        raise VolumeError(
            "series", f"no series matches data.series={wanted!r}: there is {every}", "correct data.series"
        )
    return _only_series(path, chosen)


def _by_series(images: Sequence[DicomFile]) -> list[list[DicomFile]]:
    by_uid: dict[str, list[DicomFile]] = defaultdict(list)
    for header in images:
        by_uid[header.series].append(header)
    return list(by_uid.values())


def _read_headers(folder: Path, wanted: str | None) -> list[DicomFile]:
    headers, damaged = [], []
    for file in files_of_folder(folder, wanted):
        try:
            headers.append(read_header(file))
        except VolumeError as error:
            if error.code == "package":
                raise
            damaged.append((file, error))
    if damaged:
        names = ", ".join(str(file.relative_to(folder)) for file, _ in damaged[:MAX_NAMED])
        more = f" and {len(damaged) - MAX_NAMED} more" if len(damaged) > MAX_NAMED else ""
        raise VolumeError(
            damaged[0][1].code,
            f"{counted(len(damaged), 'file')} cannot be read as DICOM: {names}{more} ({damaged[0][1].message})",
            "fetch the files again; move files that do not belong to the series out of the folder",
        )
    if not headers:
        raise VolumeError("header", "the folder holds no DICOM file", "name the folder of the slices")
    return headers


def _segmentation(headers: Sequence[DicomFile]) -> list[DicomFile]:
    """The one DICOM-SEG object of files without images."""
    segmentations = [header for header in headers if header.sop_class == SEGMENTATION]
    if len(segmentations) == 1:
        return segmentations
    if segmentations:
        names = ", ".join(header.path.name for header in segmentations[:MAX_NAMED])
        raise VolumeError(
            "series", f"there are {len(segmentations)} DICOM segmentations: {names}", "name the file of the one to use"
        )
    if any(header.sop_class == STRUCTURE_SET for header in headers):
        raise VolumeError(
            "header",
            "it is an RTSTRUCT: contours, and no voxels",
            "convert it to a label map first: plastimatch convert --input RTSTRUCT --referenced-ct FOLDER"
            " --output-labelmap label.nii.gz, or 3D Slicer (export the segmentation as labelmap)",
        )
    kinds = Counter(header.modality or "unknown" for header in headers)
    raise VolumeError(
        "no-pixels",
        f"no pixels in {counted(len(headers), 'DICOM file')} (modality {', '.join(sorted(kinds))})",
        "name the folder of the image series",
    )


def _only_series(path: Path, images: Sequence[DicomFile]) -> Series:
    """The series of the images; scouts and pages without position (reports, screenshots) beside it are left out."""
    every = _by_series(images)
    volumes = [files for files in every if _is_volume(files)]
    chosen = volumes or every
    if len(chosen) > 1:
        raise VolumeError(
            "series",
            f"the folder holds {len(chosen)} series: {'; '.join(_description(path, files) for files in chosen)}",
            _ONE_FOLDER,
        )
    left_out = [files for files in every if files is not chosen[0]]
    problems = [
        FileProblem(
            "warning",
            "series-left-out",
            f"the folder also holds {'; '.join(_description(path, files) for files in left_out)}, without a volume;"
            " left out",
            "move the files elsewhere, if they do not belong to the case",
        )
    ]
    return Series(tuple(chosen[0]), tuple(problems if left_out else ()))


def _is_volume(files: Sequence[DicomFile]) -> bool:
    positioned = any(one.position is not None for file in files for one in file.slices)
    return positioned and not all(file.is_localizer for file in files)


def _description(path: Path, files: Sequence[DicomFile]) -> str:
    """A series for messages: description, number of slices, end of the UID, and its folder if that is another one."""
    slices = sum(len(file.slices) for file in files)
    folders = {file.path.parent for file in files}
    place = ""
    if path.is_dir() and len(folders) == 1 and folders != {path}:
        place = f", in {folders.pop().relative_to(path)}"
    name = files[0].description or files[0].modality or "no description"
    scout = ", scout" if all(file.is_localizer for file in files) else ""
    return f"{name!r} ({counted(slices, 'slice')}, UID ...{files[0].series[-8:]}{scout}{place})"


def refuse_repeated(series: Series, positions: int) -> None:
    """Raise the error of a series with several slices at one position.

    Args:
        series: the series.
        positions: number of different positions.

    Raises:
        VolumeError: always.
    """
    instances: dict[str, list[str]] = defaultdict(list)
    for file in series.files:
        instances[file.instance].append(file.path.name)
    copies = [names for instance, names in instances.items() if instance and len(names) > 1]
    if copies:
        raise VolumeError(
            "positions", f"the same slice is there twice: {' and '.join(copies[0][:2])}", "remove the copies"
        )
    total = len(series.slices)
    tag = next((tag for index, tag in enumerate(VARYING) if _splits(series, index, total // positions)), None)
    told = f", which differ in {tag}" if tag else ""
    raise VolumeError(
        "positions",
        f"{total} slices lie at {positions} positions: several volumes in one series{told}",
        "give each volume (phase, echo, b-value) a folder of its own; dcm2niix separates them",
    )


def _splits(series: Series, index: int, volumes: int) -> bool:
    counts = Counter(file.varying[index] for file in series.files)
    return len(counts) == volumes and len(set(counts.values())) == 1


def refuse_unreadable(series: Series) -> None:
    """Refuse a series whose pixels are no numbers of one volume.

    Raises:
        VolumeError: the images are in colour, or are a mosaic.
    """
    first = series.files[0]
    if any(file.samples > 1 for file in series.files):
        raise VolumeError("header", "the images are in colour, not one number per voxel", "convert them to grey values")
    if any("MOSAIC" in file.image_type for file in series.files):
        raise VolumeError("header", "the slices are tiles of one image (Siemens mosaic)", "convert it with dcm2niix")
    if any(one.position is None or one.orientation is None for one in series.slices):
        lacking = next(one for one in series.slices if one.position is None or one.orientation is None)
        kind = f"modality {first.modality}" if first.modality else "unknown modality"
        raise VolumeError(
            "affine",
            f"{lacking.name} states no position and orientation in space ({kind})",
            f"convert it to NIfTI with the program that it comes from, or {FETCH}",
        )
