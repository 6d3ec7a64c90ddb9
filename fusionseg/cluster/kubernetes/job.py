"""A run as a job of Kubernetes, and its name there."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.config import RunConfig

MAX_LETTERS = 50
"""Letters of a job's name. The operator appends "-worker-12", and the name of a service has at most 63."""


@dataclass(frozen=True)
class KubernetesJob:
    """A run that is to become a job of Kubernetes."""

    config: RunConfig
    """The configuration of the run; its paths are those of the pods."""
    cluster: ClusterConfig
    """The cluster profile of the run."""
    sweep: str | None = None
    """The name of the run's sweep."""

    @property
    def name(self) -> str:
        """The name of the job."""
        run = self.config.name
        return kubernetes_name(run if self.sweep is None else f"{self.sweep}-{run}")

    @property
    def run_folder(self) -> str:
        """The run folder, as a path in the pods."""
        return str(PurePosixPath(self.config.output) / self.config.name)


def kubernetes_name(text: str) -> str:
    """Convert a text to a name that jobs, services and labels accept: lower-case letters, digits and hyphens.

    A name that would be too long ends with a hash of the text.

    Args:
        text: has a letter or a digit.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"run-{name}"
    if len(name) <= MAX_LETTERS:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: MAX_LETTERS - 9].rstrip('-')}-{digest}"
