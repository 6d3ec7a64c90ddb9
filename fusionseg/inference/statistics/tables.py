"""Tables of `fusionseg statistics`, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan, nan
from statistics import stdev

from fusionseg.inference.statistics.analysis import GroupStatistics, Statistics
from fusionseg.inference.statistics.intervals import Interval
from fusionseg.metrics.definitions import MetricDefinition, title_and_digits
from fusionseg.utils.errors import UserError, suggest
from fusionseg.utils.latex import latex_table
from fusionseg.utils.tables import fixed_number, markdown_table

_SHOWN = ("dice", "hd95_mm", "nsd")
_MIN_P = 1e-4


def statistics_markdown(found: Statistics, metrics: Sequence[str] | None = None) -> str:
    """Format the statistics as Markdown: for each metric a table with a line for each row, and notes.

    Args:
        found: the statistics.
        metrics: of the tables; None takes Dice, HD95 and NSD.

    Raises:
        UserError: no row has a metric; all such names are listed.
    """
    blocks = [f"{title}\n\n{markdown_table(cells)}" for title, cells in statistics_cells(found, metrics)]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in statistics_notes(found, metrics))])


def statistics_latex(found: Statistics, metrics: Sequence[str] | None = None) -> str:
    """Format the statistics as LaTeX, with the tables and notes of the Markdown; the notes are comments.

    Args:
        found: the statistics.
        metrics: see `statistics_markdown`.
    """
    blocks = [f"% {title}\n{latex_table(cells)}" for title, cells in statistics_cells(found, metrics)]
    return "\n\n".join([*blocks, "\n".join(f"% {note}" for note in statistics_notes(found, metrics))])


def statistics_cells(found: Statistics, metrics: Sequence[str] | None = None) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the title and the cells of each table, with `**bold**` as in Markdown; the first row is the head.

    Args:
        found: the statistics.
        metrics: see `statistics_markdown`.
    """
    known = list(dict.fromkeys(name for group in found.groups for name in group.metrics))
    if metrics is not None and (unknown := [name for name in metrics if name not in known]):
        raise UserError(f"--metrics: these runs have no metric {name!r}; {suggest(name, known)}" for name in unknown)
    for group in found.groups:
        of_data = f", {group.data_set}" if len(found.groups) > 1 else ""
        for metric in _shown(found, metrics):
            if metric in group.metrics:
                title, direction = _title(group, metric), _direction(group.definition(metric))
                yield f"{title}{of_data}{direction}:", _cells(group, metric, found)
                if any(len(row.pooled.labels) > 1 for row in group.rows):
                    yield f"{title}{of_data} by class:", _class_cells(group, metric, found.level)


def _shown(found: Statistics, metrics: Sequence[str] | None) -> list[str]:
    """The metrics of the tables."""
    if metrics is not None:
        return list(dict.fromkeys(metrics))
    known = list(dict.fromkeys(name for group in found.groups for name in group.metrics))
    return [name for name in _SHOWN if name in known] or known[:1]


def _cells(group: GroupStatistics, metric: str, found: Statistics) -> list[list[str]]:
    """The table of one metric; the best mean is bold."""
    header = ["name", "cases", "mean", f"{found.level:.0%} interval", "SD cases", "SD seeds", "SD folds"]
    ranks = group.ranks.get(metric)
    tested = any(row.metrics[metric].test for row in group.rows if metric in row.metrics)
    header += ["rank", "first in"] if ranks else []
    header += ["difference", "pairs", "p", "p (Holm)", "effect size"] if tested else []
    digits, best = _digits(group, metric), _best(group, metric)
    body = []
    for index, row in enumerate(group.rows):
        of_row = row.metrics.get(metric)
        if of_row is None:
            continue
        mean = fixed_number(of_row.cases.mean, digits)
        cells = [row.name, str(of_row.cases.n), f"**{mean}**" if index == best else mean]
        cells.append(_bounds(of_row.cases.low, of_row.cases.high, digits))
        cells.append(fixed_number(of_row.deviation, digits))
        cells += [_spread(of_row.repetitions, digits), _spread(of_row.folds, digits)]
        if ranks:
            place = f"{ranks.ranks[index]:g} ({ranks.low[index]:g} to {ranks.high[index]:g})"
            cells += [place, f"{100 * ranks.first[index]:.0f} %"]
        test = of_row.test
        if test is not None:
            cells.append(interval_text(test.difference, digits, signed=True))
            cells += [str(test.pairs), _p_text(test.p), _p_text(of_row.p_holm)]
            effect = _bounds(test.effect_low, test.effect_high, 2, signed=True)
            cells.append(f"{fixed_number(test.effect, 2, signed=True)} {effect}")
        elif tested:
            cells += ["baseline" if row.name == found.baseline else "-", "-", "-", "-", "-"]
        body.append(cells)
    return [header, *body]


def _class_cells(group: GroupStatistics, metric: str, level: float) -> list[list[str]]:
    rows = [row for row in group.rows if metric in row.metrics]
    labels = list(dict.fromkeys(label for row in rows for label in row.pooled.labels))
    body, digits = [], _digits(group, metric)
    for row in rows:
        classes = row.metrics[metric].classes
        body.append(
            [row.name, *(interval_text(classes[label], digits) if label in classes else "-" for label in labels)]
        )
    return [["name", *labels], *body]


def _best(group: GroupStatistics, metric: str) -> int | None:
    """The index of the row with the best mean, where all rows are over the same cases; None without one."""
    definition = group.definition(metric)
    means = [row.metrics[metric].cases.mean for row in group.rows if metric in row.metrics]
    known = [mean for mean in means if not isnan(mean)]
    if definition is None or definition.higher_is_better is None or metric not in group.comparable:
        return None
    if len(known) < 2 or len(means) < len(group.rows):
        return None
    return means.index(max(known) if definition.higher_is_better else min(known))


def statistics_notes(found: Statistics, metrics: Sequence[str] | None = None) -> list[str]:
    """Sentences about the tables, for below them.

    Args:
        found: the statistics.
        metrics: see `statistics_markdown`.
    """
    checkpoint = "last step" if found.weights == "last" else "best validation, which was chosen on these cases"
    notes = [
        "Each case counts once, scored by the runs that did not train on it; classes are averaged within a case, then"
        f" seeds. Weights: of the {checkpoint}.",
        "Interval: of the mean over cases (bootstrap-t; Student's t for fewer than 10 cases). SD seeds and SD folds:"
        " standard deviation of the means of single seeds and folds. Trainings of folds share cases, so their"
        " spread is not an error of the mean.",
    ]
    if any(group.ranks for group in found.groups):
        notes.append(
            "rank: by the means over the cases that all rows share, with the interval over resamples of these cases;"
            " first in: share of the resamples in which the row is the best."
        )
        for group in found.groups:
            notes += [
                f"{_title(group, metric)}: Kendall's tau between the ranking and that of a resample is {ranks.tau:.2f}"
                f" on average ({ranks.cases} cases{f' of {group.data_set}' if len(found.groups) > 1 else ''})."
                for metric, ranks in group.ranks.items()
                if metric in _shown(found, metrics)
            ]
    if found.baseline is not None:
        notes.append(
            f"difference: mean of the row minus `{found.baseline}`, case by case; p: Wilcoxon signed-rank test,"
            " two-sided; Holm: corrected for the rows of the table; effect size: matched-pairs rank-biserial"
            " correlation, from -1 to 1, above 0 if the row has the higher values."
        )
    return [*notes, *found.notes]


def _title(group: GroupStatistics, metric: str) -> str:
    return title_and_digits(metric, group.definition(metric))[0]


def _digits(group: GroupStatistics, metric: str) -> int:
    return title_and_digits(metric, group.definition(metric))[1]


def _direction(definition: MetricDefinition | None) -> str:
    if definition is None or definition.higher_is_better is None:
        return ""
    return f" ({'higher' if definition.higher_is_better else 'lower'} is better)"


def interval_text(found: Interval, digits: int, *, signed: bool = False) -> str:
    """Format a mean with its interval: 0.861 [0.852, 0.870]; without bounds, the mean alone.

    Args:
        found: the interval.
        digits: decimal places.
        signed: with plus signs.
    """
    bounds = _bounds(found.low, found.high, digits, signed=signed)
    return f"{fixed_number(found.mean, digits, signed=signed)} {bounds}".removesuffix(" -")


def _bounds(low: float, high: float, digits: int, *, signed: bool = False) -> str:
    if isnan(low):
        return "-"
    return f"[{fixed_number(low, digits, signed=signed)}, {fixed_number(high, digits, signed=signed)}]"


def _p_text(p: float) -> str:
    return "-" if isnan(p) else f"< {_MIN_P}" if p < _MIN_P else f"{p:.4f}"


def deviation_of(means: Mapping[str, float]) -> float:
    """Standard deviation of the means of seeds or folds; nan with fewer than two.

    Args:
        means: one mean for each seed or fold; nan where there is none.
    """
    known = [value for value in means.values() if not isnan(value)]
    return stdev(known) if len(known) > 1 else nan


def _spread(means: dict[str, float], digits: int) -> str:
    """The standard deviation of means, and their number."""
    return f"{fixed_number(deviation_of(means), digits)} ({len(means)})"
