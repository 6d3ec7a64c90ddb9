"""The checklist CLAIM (2024 update, doi:10.1148/ryai.240300): what a run answers, and what its author has to."""

from __future__ import annotations

from fusionseg.export.card.facts import VALIDATION, CardFacts, entry, fold_text
from fusionseg.export.card.text import AUTHOR, UNKNOWN
from fusionseg.runs.evaluations import SUMMARY
from fusionseg.runs.paths import BEST, CONFIG, SPLIT
from fusionseg.utils.tables import markdown_table

DOI = "10.1148/ryai.240300"
ITEMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Title and abstract", ("category of the AI technology in the title", "structured summary in the abstract")),
    ("Introduction", ("background, intended use and role of the approach", "aims, objectives and hypotheses")),
    (
        "Methods: study and data",
        (
            "prospective or retrospective study",
            "goal of the study",
            "sources of the data",
            "criteria of inclusion and exclusion",
            "preprocessing of the data",
            "selection of subsets of the data",
            "de-identification",
            "handling of missing data",
            "protocol of the image acquisition",
        ),
    ),
    (
        "Methods: reference standard",
        (
            "methods of the reference standard",
            "rationale for the reference standard",
            "source of its annotations, and the annotators",
            "annotation of the test set",
            "variability within and between annotators",
        ),
    ),
    (
        "Methods: partitions",
        ("assignment of the data to partitions", "level at which the partitions are disjoint", "intended sample size"),
    ),
    (
        "Methods: model and training",
        (
            "description of the model",
            "software libraries and versions",
            "initialisation of the parameters",
            "details of the training",
            "selection of the final model",
            "ensembles",
        ),
    ),
    (
        "Methods: evaluation",
        (
            "metrics of the performance",
            "statistical measures of significance and uncertainty",
            "robustness or sensitivity analysis",
            "explainability or interpretability",
            "evaluation on internal data",
            "testing on external data",
            "registration of a clinical trial",
        ),
    ),
    (
        "Results",
        (
            "numbers of included and excluded patients or examinations",
            "demographic and clinical characteristics of each partition",
            "performance and its uncertainty",
            "estimates of diagnostic performance and their precision",
            "analysis of failures",
        ),
    ),
    ("Discussion", ("limitations", "implications for practice")),
    (
        "Other information",
        ("full protocol or technical details", "availability of software, model and data", "funding"),
    ),
)
"""Sections and subjects of the 44 items, in their order and in our words."""
COUNT = sum(len(subjects) for _, subjects in ITEMS)


def claim_text(facts: CardFacts) -> str:
    """Write the checklist with the answers of a run.

    Args:
        facts: of the run.
    """
    answers = claim_answers(facts)
    lines = [
        f"# CLAIM checklist: {facts.config.get('name')}",
        "",
        f"The {COUNT} items of the Checklist for Artificial Intelligence in Medical Imaging, 2024 update (doi:{DOI}),"
        f" in short. The files of the run answer {len(answers)} of them, in part or in full; the others are for the"
        " author."
        " The card, card.md, has the values.",
    ]
    number = 0
    for section, subjects in ITEMS:
        rows = [("item", "subject", "answer")]
        for subject in subjects:
            number += 1
            rows.append((str(number), subject, answers.get(number, AUTHOR)))
        lines += ["", f"## {section}", "", *markdown_table(rows).splitlines()]
    return "\n".join([*lines, ""])


def claim_answers(facts: CardFacts) -> dict[int, str]:
    """The answers of a run's files, by the number of the item.

    Args:
        facts: of the run.
    """
    missing = entry(facts.config, "data", "missing_channels") or "refuse"
    return {
        9: f"card, Preparation of the images; {CONFIG} has every setting",
        12: f"missing channels: {missing}; the author adds the rest",
        **_partitions(facts),
        22: f"{entry(facts.config, 'model', 'name')}; card, Model",
        23: _software(facts),
        24: "random" if not facts.config.get("init_from") else "weights of another training; card, Data",
        25: f"card, Training; {CONFIG} has every setting",
        26: f"highest Dice of the validations during the training ({BEST})"
        if facts.best
        else "weights of the last step",
        27: "one network; an ensemble has a card for each",
        **_evaluation(facts),
        40: "card, Limits; the author adds those of the study",
        42: f"{CONFIG} and {SPLIT} of the run",
    }


def _partitions(facts: CardFacts) -> dict[int, str]:
    split = facts.split
    if split is None:
        return {}
    methods = ", ".join(dict.fromkeys(method.name for method in split.method_of_each))
    groups = any(case.group is not None for case in (*split.training, *split.validation))
    level = "groups (data.group)" if groups else "cases; the author says whether a patient has several"
    return {
        19: f"{methods}; fold: {fold_text(split)}; {SPLIT} has each case",
        20: level,
        35: f"{len(split.training)} training and {len(split.validation)} validation cases; the author adds others",
    }


def _software(facts: CardFacts) -> str:
    packages = facts.environment.get("packages") or {}
    listed = [f"{name} {version}" for name, version in packages.items() if version]
    return ", ".join([f"fusionseg {facts.environment.get('fusionseg', UNKNOWN)}", *listed])


def _evaluation(facts: CardFacts) -> dict[int, str]:
    if not facts.evaluations:
        return {}
    metrics = sorted({metric for measured in facts.evaluations for _, metric in measured.intervals})
    internal = [measured.name for measured in facts.evaluations if measured.dataset == VALIDATION]
    external = [measured.dataset for measured in facts.evaluations if measured.dataset != VALIDATION]
    found = {
        28: f"{', '.join(metrics)} in the geometry of the files; {SUMMARY} defines them",
        29: "95 % confidence intervals over cases; card, Results",
        37: "card, Results",
        39: "the worst cases: fusionseg report on the evaluation; the author interprets them",
    }
    found |= {32: f"card, Results, {', '.join(internal)}"} if internal else {}
    return found | ({33: f"{', '.join(external)}; the author says whether it is external"} if external else {})
