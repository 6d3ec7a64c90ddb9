"""The section `kubernetes` of a cluster profile: image, volumes, and further fields of job and pods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field, model_validator

from fusionseg.config.section import Section

CONFIG_FOLDER = PurePosixPath("/etc/fusionseg")
"""Folder of the configuration in a pod."""
SHARED_MEMORY = PurePosixPath("/dev/shm")
READ_ONLY = ":ro"
_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_SUBDOMAIN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"

OWN_LABELS = tuple(f"app.kubernetes.io/{name}" for name in ("name", "instance", "part-of"))
"""Labels that `fusionseg manifest` sets."""
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_IMAGE_FOLDERS = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr", "var")
"""Folders of an image that a claim would hide, with the programs in them."""

# Fields of a pod that may not stand under `pod`, and what sets each of them.
_OWN_FIELDS = {
    "containers": "image, and the resources of the profile", "volumes": "claims", "restartPolicy": "max_restarts",
    "terminationGracePeriodSeconds": "signal_s",
}  # fmt: skip


class KubernetesConfig(Section):
    """A run on Kubernetes, where the other keys of the profile do not say it."""

    image: Annotated[str, Field(pattern=r"^\S+$")] | None = None
    """Image of the pods, with fusionseg and torchrun, such as that of launch/container/Dockerfile."""
    namespace: Annotated[str, Field(pattern=_LABEL)] | None = None
    """Namespace of the job; null is the one that kubectl uses."""
    claims: dict[Annotated[str, Field(pattern=_SUBDOMAIN)], str] = Field(default_factory=dict)
    """Persistent volume claims, each with its path in the pods: {datasets: "/data:ro", scratch: /scratch}. With `:ro`
    it is mounted read-only. The paths of the configuration lie below them."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the job, such as the queue of Kueue."""
    pod: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the pods' specification: nodeSelector, tolerations, imagePullSecrets, securityContext."""

    @model_validator(mode="after")
    def _fits(self) -> KubernetesConfig:
        problems = []
        taken: dict[PurePosixPath, str] = {CONFIG_FOLDER: "the configuration", SHARED_MEMORY: "the shared memory"}
        for name, text in self.claims.items():
            path = PurePosixPath(text.removesuffix(READ_ONLY))
            if not path.is_absolute() or ".." in path.parts or ":" in str(path) or path == PurePosixPath("/"):
                problems.append(
                    f"claims.{name}: expected a folder of the pods as an absolute path, such as /data or"
                    f" /data{READ_ONLY}, got {text!r}"
                )
                continue
            if len(path.parts) == 2 and path.name in _IMAGE_FOLDERS:
                problems.append(f"claims.{name}: {path} would hide a folder of the image: choose another path")
            problems += [
                f"claims.{name}: {path} and {other} ({owner}) lie in each other: choose another path"
                for other, owner in taken.items()
                if path.is_relative_to(other) or other.is_relative_to(path)
            ]
            taken[path] = f"claim {name}"
        problems += [
            f"pod: {field} is set by {_OWN_FIELDS[field]}: remove it" for field in self.pod if field in _OWN_FIELDS
        ]
        problems += self._label_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _label_problems(self) -> Iterator[str]:
        for key, value in self.labels.items():
            if key in OWN_LABELS:
                yield f"labels: {key} is set by fusionseg manifest: remove it"
            elif not _LABEL_KEY.fullmatch(key):
                yield f"labels: {key!r} is no key of a label (expected letters, digits, '-', '_' and '.', PREFIX/NAME)"
            if not _LABEL_VALUE.fullmatch(value):
                yield (
                    f"labels.{key}: {value!r} is no value of a label (expected at most 63 letters, digits, '-', '_' and"
                    " '.')"
                )

    def mounts(self) -> dict[PurePosixPath, tuple[str, bool]]:
        """The claims by their path in the pods, each with whether it is read-only."""
        return {
            PurePosixPath(text.removesuffix(READ_ONLY)): (name, text.endswith(READ_ONLY))
            for name, text in self.claims.items()
        }
