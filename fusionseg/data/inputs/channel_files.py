"""The channel files of a case, recognised by nnU-Net's numbers or by the names of the network's channels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionseg.data.formats.case import CHANNEL, Case, ChannelFiles
from fusionseg.data.formats.layouts.folders import WORD
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.found import Found
from fusionseg.utils.errors import some_of


def numbered_files(files: Sequence[Path], readers: Readers, *, from_zero: bool = True) -> dict[str, dict[int, Path]]:
    """Group the files NAME_0000, NAME_0001, ... of one folder, as nnU-Net names the channels of a case.

    Numbers that do not start at 0000 count cases, not channels, and are left out, unless the first channel may be
    missing.

    Args:
        files: of one folder.
        readers: of the image files.
        from_zero: leave out numbers that do not start at 0000.

    Returns:
        NAME -> number -> file.
    """
    groups: dict[tuple[str, str], dict[int, Path]] = defaultdict(dict)
    for file in files:
        if match := CHANNEL.fullmatch(readers.stem(file)):
            groups[match[1], readers.suffix(file).lower()][int(match[2])] = file
    return {name: numbered for (name, _), numbered in groups.items() if 0 in numbered or not from_zero}


def channel_of(stem: str, channels: Sequence[str]) -> tuple[str, int] | None:
    """Find the channel that the end of a file name states: `p1_t1ce` is the channel T1CE of p1.

    Whole words are compared, in upper and lower case alike, so `t1ce` is not T1. Of several channels, the one with most
    words is the right one: `p1_t1_gd` is `T1 Gd`, not `Gd`.

    Args:
        stem: name of a file without suffix, or of a folder.
        channels: names of the network's channels.

    Returns:
        The name without the channel, and the channel's position; None if the name states no channel.
    """
    words = list(WORD.finditer(stem.casefold()))
    best: tuple[int, int] | None = None
    for position, channel in enumerate(channels):
        wanted = WORD.findall(channel.casefold())
        if wanted and [word.group() for word in words[-len(wanted) :]] == wanted:
            best = max(best or (0, 0), (len(wanted), position))
    if best is None:
        return None
    length, position = best
    return stem[: words[-length].start()].rstrip("_-. "), position


def named_channels(
    paths: Sequence[Path], channels: Sequence[str], readers: Readers
) -> dict[str, dict[int, list[Path]]]:
    """Group files, or folders, whose names end with the name of a channel.

    Args:
        paths: files of one folder, or folders of one folder.
        channels: names of the network's channels.
        readers: of the image files.

    Returns:
        The rest of the name -> position of the channel -> the files. The rest is empty for `t1.nii.gz`.
    """
    groups: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        if (found := channel_of(readers.stem(path), channels)) is not None:
            groups[found[0]][found[1]].append(path)
    return groups


def files_of_case(
    name: str,
    folder: Path,
    files: Sequence[Path],
    channels: Sequence[str],
    readers: Readers,
    *,
    accept_missing: bool = False,
) -> Found:
    """Find the image of a case among the files of the case's folder.

    One file is the image. Of several files, the channels are recognised by nnU-Net's numbers or by their names; files
    beside them, such as a mask, are left out.

    Args:
        name: of the case.
        folder: of the case.
        files: the image files of the folder, at least one.
        channels: names of the network's channels.
        readers: of the image files.
        accept_missing: the case may lack the file of a channel.
    """
    if accept_missing and len(channels) > 1 and (partial := _partial(files, channels, readers)) is not None:
        return Found([Case(name, partial, None)], unread=[file for file in files if file not in partial])
    if len(files) == 1:
        return Found([Case(name, (files[0],), None)])
    ways: list[tuple[Path, ...]] = []
    count = len(channels)
    for numbered in numbered_files(files, readers).values():
        if sorted(numbered) == list(range(count)):
            ways.append(tuple(numbered[number] for number in range(count)))
    for named in named_channels(files, channels, readers).values():
        if len(named) == count and all(len(paths) == 1 for paths in named.values()):
            ways.append(tuple(named[position][0] for position in range(count)))
    ways = list(dict.fromkeys(ways))
    if len(ways) == 1:
        return Found([Case(name, ways[0], None)], unread=[file for file in files if file not in ways[0]])
    listed = some_of([file.name for file in files])
    if ways:
        choices = " or ".join(" + ".join(file.name for file in way) for way in ways)
        return Found(problems=[f"{folder}: holds several images ({choices}); keep one of them in the folder of a case"])
    if count == 1:
        wanted = f"the network reads one channel, {channels[0]}"
        remedy = (
            f"keep one image in the folder of a case, or name it {name}_0000 or {channels[0]}; if each file is a case,"
            " give this folder itself"
        )
    else:
        wanted = f"the network reads the channels {', '.join(channels)}"
        remedy = (
            f"name one file for each channel ({_examples(channels, files[0], readers)}), or {name}_0000 to"
            f" {name}_{count - 1:04d}"
        )
    return Found(problems=[f"{folder}: holds {len(files)} images ({listed}), and {wanted}; {remedy}"])


def _partial(files: Sequence[Path], channels: Sequence[str], readers: Readers) -> ChannelFiles | None:
    """The channels of the one case that lacks some; None if the files are not those of such a case."""
    groups: list[dict[int, Path]] = list(numbered_files(files, readers, from_zero=False).values())
    for named in named_channels(files, channels, readers).values():
        if all(len(paths) == 1 for paths in named.values()):
            groups.append({position: paths[0] for position, paths in named.items()})
    found = [made for group in groups if (made := _lacking(group, len(channels))) is not None]
    return found[0] if len(groups) == len(found) == 1 else None


def _lacking(group: Mapping[int, Path], count: int) -> ChannelFiles | None:
    """The files of a case that lacks channels; None if it has all, or others."""
    if not group or max(group) >= count or len(group) == count:
        return None
    missing = [position for position in range(count) if position not in group]
    return ChannelFiles([group[position] for position in sorted(group)], missing)


def cases_of_files(
    folder: Path,
    files: Sequence[Path],
    channels: Sequence[str] | None,
    readers: Readers,
    *,
    accept_missing: bool = False,
) -> Found:
    """Find the cases of a folder of images: each file is a case, or a channel of one.

    Args:
        folder: the folder, for messages.
        files: its image files.
        channels: names of the network's channels; None if they are not known. With one channel, files are never joined.
        readers: of the image files.
        accept_missing: a case may lack the file of a channel.
    """
    found = Found()
    joined: set[Path] = set()
    accept = accept_missing and channels is not None and len(channels) > 1
    for name, numbered in numbered_files(files, readers, from_zero=not accept).items():
        if accept and (partial := _lacking(numbered, len(channels or ()))) is not None:
            found.cases.append(Case(name, partial, None))
            joined.update(partial)
            continue
        if channels is not None and len(channels) == 1 and len(numbered) > 1:
            continue
        lacking = [f"{name}_{number:04d}" for number in range(max(numbered)) if number not in numbered]
        if lacking:
            found.problems.append(
                f"{folder}: channel {', '.join(lacking[:3])} is missing beside {numbered[0].name}; add it, or "
                "rename the files if the numbers do not count channels"
            )
        found.cases.append(Case(name, tuple(numbered[number] for number in sorted(numbered)), None))
        joined.update(numbered.values())
    if channels is not None and len(channels) > 1:
        others = [file for file in files if file not in joined]
        for name, named in named_channels(others, channels, readers).items():
            single = {position: paths[0] for position, paths in named.items() if len(paths) == 1}
            partial = _lacking(single, len(channels)) if accept and len(single) == len(named) else None
            if partial is not None:
                found.cases.append(Case(name or folder.resolve().name, partial, None))
                joined.update(partial)
            elif len(named) > 1:  # a single file may hold all channels, whatever its name
                found.problems += _incomplete(folder, name, named, channels)
                found.cases.append(
                    Case(name or folder.resolve().name, tuple(f[0] for _, f in sorted(named.items())), None)
                )
                joined.update(file for paths in named.values() for file in paths)
    found.cases += [Case(readers.stem(file), (file,), None) for file in files if file not in joined]
    return found


def _incomplete(folder: Path, name: str, named: Mapping[int, Sequence[Path]], channels: Sequence[str]) -> list[str]:
    lacking = [channels[position] for position in range(len(channels)) if position not in named]
    doubled = [channels[position] for position, paths in named.items() if len(paths) > 1]
    case = f"case {name}" if name else "the case"
    present = some_of([file.name for _, paths in sorted(named.items()) for file in paths])
    if not lacking and not doubled:
        return []
    what = f"lacks the channel {', '.join(lacking)}" if lacking else f"has several files of {', '.join(doubled)}"
    return [f"{folder}: {case} {what} ({present}); each case needs one file for each of {', '.join(channels)}"]


def _examples(channels: Sequence[str], file: Path, readers: Readers) -> str:
    return ", ".join("_".join(WORD.findall(channel.casefold())) + readers.suffix(file) for channel in channels[:3])
