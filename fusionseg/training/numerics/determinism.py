"""`train.deterministic`: torch's deterministic algorithms, and a message about an operator that has none."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fusionseg.config import TrainConfig
from fusionseg.utils.errors import TrainingStopped, UserError

log = logging.getLogger("fusionseg")

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""The values with which cuBLAS gives the same bits in each start (NVIDIA, cuBLAS, "Results Reproducibility")."""
_NO_KERNEL = " does not have a deterministic implementation"  # of torch's message
_is_set_here = False  # a mode that the user's own program has set stays


def reserve_workspace(config: TrainConfig) -> None:
    """Set the variable of cuBLAS that a deterministic training needs. Call it before the process uses a GPU.

    Args:
        config: the `train` section.

    Raises:
        UserError: the variable has a value with which cuBLAS is not deterministic.
    """
    if not config.deterministic:
        return
    value = os.environ.setdefault(_WORKSPACE, _WORKSPACES[0])
    if value not in _WORKSPACES:
        raise UserError(
            f"train.deterministic: the environment variable {_WORKSPACE} is {value} (expected"
            f" {' or '.join(_WORKSPACES)}); unset it, or set train.deterministic=false"
        )


def set_deterministic(config: TrainConfig) -> None:
    """Let torch take deterministic algorithms in this process, or no longer if an earlier run has let it.

    Args:
        config: the `train` section.

    Raises:
        UserError: see `reserve_workspace`.
    """
    global _is_set_here
    reserve_workspace(config)
    if config.deterministic:
        _is_set_here = True
        torch.use_deterministic_algorithms(True)
        # No part reads memory before it is written: filling each new tensor would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    elif _is_set_here:
        _is_set_here = False
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@contextmanager
def naming_operators() -> Iterator[None]:
    """Turn torch's error about an operator without a deterministic algorithm into the end of the training.

    Raises:
        TrainingStopped: the body has called such an operator.
    """
    try:
        yield
    except RuntimeError as error:
        name, found, _ = str(error).partition(_NO_KERNEL)
        if not found:
            raise
        raise TrainingStopped(
            f"train.deterministic: torch has no deterministic algorithm for {name} on this device; replace the part"
            " that uses it, or set train.deterministic=false: the run goes on from its last checkpoint"
        ) from error
