"""Starting from weights that somebody else trained: what fits is loaded, what does not is said."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionseg.errors import UserError

Shape = tuple[int, ...]

_STATE_KEYS = ("model", "state_dict", "model_state_dict", "net")
# Left by DataParallel and DDP, torch.compile, and by trainers that hold the network as an attribute.
_PREFIXES = ("", "module.", "_orig_mod.", "net.", "model.", "module._orig_mod.", "_orig_mod.module.")
_NUM_EXAMPLES = 4


@dataclass(frozen=True)
class MatchReport:
    """How far a state dict fits a model. Tensors include buffers; parameters are trainable numbers."""

    matched: int
    """Tensors of the model that were found, with the right shape."""
    total: int
    """Tensors of the model."""
    matched_parameters: int
    total_parameters: int
    missing: tuple[str, ...]
    """Names of the model that the state does not have."""
    unexpected: tuple[str, ...]
    """Names of the state that the model does not have."""
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    """Name, shape in the model, shape in the state."""

    @property
    def share(self) -> float:
        """The share of the model's parameters that was found, 0 to 1."""
        return self.matched_parameters / self.total_parameters if self.total_parameters else 1.0

    def __str__(self) -> str:
        percent = 100 * self.share
        parts = [f"loaded {self.matched} of {self.total} tensors ({percent:.1f} % of the parameters)"]
        if self.missing:
            parts.append(f"not found: {_examples(self.missing)}")
        if self.mismatched:
            parts.append(f"shape differs: {self.shape_differences}")
        if self.unexpected:
            parts.append(f"not used: {_examples(self.unexpected)}")
        return "; ".join(parts)

    @property
    def shape_differences(self) -> str:
        """A few of the tensors that differ in shape, in words."""
        return _examples(f"{name} (model {here}, file {there})" for name, here, there in self.mismatched)


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, min_share: float = 0.5, source: str = ""
) -> MatchReport:
    """Copy into the model every tensor of `state` that fits it by name and shape.

    Prefixes that wrappers put before names are taken off as it suits best.

    Args:
        min_share: the least share of the model's parameters that must fit, 0 to 1.
        source: where the state comes from, for the message.

    Raises:
        UserError: less than `min_share` fits; the model is unchanged.
    """
    own = model.state_dict()
    candidates = ({name.removeprefix(prefix): x for name, x in state.items()} for prefix in _PREFIXES)
    # max keeps the first of equals: the names as they are, if no prefix does better.
    found = max(candidates, key=lambda names: len(_fitting(own, names)))
    fitting = _fitting(own, found)

    num_parameters = {name: x.numel() for name, x in model.named_parameters(remove_duplicate=False)}
    report = MatchReport(
        matched=len(fitting),
        total=len(own),
        matched_parameters=sum(num_parameters.get(name, 0) for name in fitting),
        total_parameters=sum(num_parameters.values()),
        missing=tuple(name for name in own if name not in found),
        unexpected=tuple(name for name in found if name not in own),
        mismatched=tuple(
            (name, tuple(x.shape), tuple(found[name].shape))
            for name, x in own.items()
            if name in found and name not in fitting
        ),
    )
    if not fitting or report.share < min_share:
        raise UserError(_refusal(report, min_share, source))
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(found[name])
    return report


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pt file, on the CPU: the whole file, or its "model", "state_dict", ...

    Nothing but tensors and plain containers is unpickled, so a file from elsewhere cannot run code.

    Raises:
        UserError: the file cannot be read or holds no state dict.
    """
    content = _load(path)
    inner = [content[key] for key in _STATE_KEYS if key in content] if isinstance(content, Mapping) else []
    for candidate in [*inner, content]:
        if isinstance(candidate, Mapping):
            state = {str(name): x for name, x in candidate.items() if isinstance(x, Tensor)}
            if state:
                return state
    held = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        held = f"a dictionary of {_examples(map(str, content)) or 'nothing'}"
    raise UserError(
        f"{path}: no weights found: expected a state dict, or one under {', '.join(_STATE_KEYS)}, and it holds {held}"
    )


def _load(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:  # torch's own text advises to switch the safety off
        raise UserError(
            f"{path}: not a PyTorch file, or one that holds more than tensors and plain containers; save what"
            " is needed of it as torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise UserError(f"{path}: damaged or cut short, or not a PyTorch file; copy it again") from error


def _fitting(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> set[str]:
    return {name for name, x in own.items() if name in found and found[name].shape == x.shape}


def _refusal(report: MatchReport, min_share: float, source: str) -> str:
    text = (
        f"{source or 'these weights'}: only {100 * report.share:.1f} % of the network's parameters fit"
        f" ({report.matched} of {report.total} tensors), at least {100 * min_share:.0f} % are needed"
    )
    if report.missing:
        text += f"; the network has {_examples(report.missing)}"
    if report.unexpected:
        text += f"; the file has {_examples(report.unexpected)}"
    if report.mismatched:
        text += f"; shape differs: {report.shape_differences}"
    return text + "; nothing was loaded. Is it of another network, or of another model.feature_size?"


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join([*listed[:_NUM_EXAMPLES], *(["..."] if len(listed) > _NUM_EXAMPLES else [])])
