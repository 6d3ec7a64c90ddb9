"""Differences of two label schemes in words, for the message of a run whose labels have changed."""

from __future__ import annotations

from fusionseg.data.labels.scheme import LabelScheme, ranges


def scheme_differences(before: LabelScheme, now: LabelScheme) -> list[str]:
    """Describe the differences of two schemes whose classes have the same names.

    Args:
        before: the scheme that a run started with.
        now: the scheme of its data set now.
    """
    differences = [
        f"class {old.name} was {ranges(old.values)} in the label files, is {ranges(new.values)} now"
        for old, new in zip(before.classes[1:], now.classes[1:], strict=True)
        if set(old.values) != set(new.values)
    ]
    if before.ignore != now.ignore:
        differences.append(f"the ignore label was {_or_none(before.ignore)}, is {_or_none(now.ignore)} now")
    old_background, new_background = before.classes[0].values, now.classes[0].values
    if (set(old_background), before.rest_is_background) != (set(new_background), now.rest_is_background):
        differences.append(f"the background was {_background(before)} in the label files, is {_background(now)} now")
    if before.regions != now.regions:
        differences.append(f"the regions were {_regions(before)}, are {_regions(now)} now")
    if before.sigmoid != now.sigmoid:
        differences.append(f"the outputs were {_outputs(before)}, are {_outputs(now)} now")
    return differences


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)


def _background(scheme: LabelScheme) -> str:
    return "every other value" if scheme.rest_is_background else ranges(sorted(scheme.classes[0].values))


def _regions(scheme: LabelScheme) -> str:
    regions = (
        f"{region.name} of {', '.join(scheme.names[index] for index in region.classes)} (painted as {region.value})"
        for region in scheme.regions
    )
    return "; ".join(regions) or "none"


def _outputs(scheme: LabelScheme) -> str:
    return "sigmoid" if scheme.sigmoid else "softmax"
