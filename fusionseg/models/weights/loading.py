"""Starting from weights that somebody else trained: what fits is loaded, what does not is said."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionseg.models.weights.resizing import adapt
from fusionseg.models.weights.tensor_names import Renaming, rename
from fusionseg.utils.errors import UserError

Shape = tuple[int, ...]

_STATE_KEYS = ("model", "state_dict", "model_state_dict", "net", "network_weights", "student", "teacher")
_NUM_EXAMPLES = 4

# What published checkpoints hold beside the weights: the best Dice as a NumPy number (written by NumPy 1 under another
# name), and the command line. None of them runs anything when it is read.
_scalar = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    Namespace,
]


@dataclass(frozen=True)
class Count:
    """How much was found of a part of a model. Tensors include buffers; parameters are trainable numbers."""

    matched: int
    """Tensors of the part that were found, in its shapes or adapted to them."""
    total: int
    """Tensors of the part."""
    matched_parameters: int
    total_parameters: int

    @property
    def share(self) -> float:
        """The share of the part's parameters that was found, 0 to 1."""
        return self.matched_parameters / self.total_parameters if self.total_parameters else 1.0

    @property
    def percent(self) -> str:
        return f"{100 * self.share:.1f} %"


@dataclass(frozen=True)
class MatchReport(Count):
    """How far a state dict fits a model."""

    missing: tuple[str, ...]
    """Names of the model that the state does not have."""
    unexpected: tuple[str, ...]
    """Names of the state that the model does not have, as they stand in the state."""
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    """Name, shape in the model, shape in the state: not loaded."""
    adapted: tuple[tuple[str, str], ...]
    """Name in the model, and what was done to the state's tensor: loaded."""
    renaming: Renaming
    """How the state's names were read."""
    encoder: Count | None
    """Of the model's encoder alone, if it has one that is named."""

    @property
    def encoder_only(self) -> bool:
        """Whether all that matched lies in the encoder."""
        return self.encoder is not None and self.matched == self.encoder.matched > 0

    def suffices(self, min_share: float) -> bool:
        """Whether `min_share` of the model's parameters was found, or of its encoder's: an eighth of a Swin UNETR."""
        shares = [self.share, self.encoder.share if self.encoder else 0.0]
        return self.matched > 0 and max(shares) >= min_share

    def __str__(self) -> str:
        encoder = self.encoder
        if encoder is not None and self.encoder_only:
            text = (
                f"loaded {encoder.matched} of {encoder.total} tensors of the encoder ({encoder.percent} of its"
                f" parameters, {self.percent} of the network's)"
            )
        else:
            text = f"loaded {self.matched} of {self.total} tensors ({self.percent} of the parameters"
            text += f"; {encoder.percent} of the encoder's)" if encoder is not None else ")"
        parts = [text]
        if str(self.renaming):
            parts.append(f"read {self.renaming}")
        for how in dict.fromkeys(how for _, how in self.adapted):
            parts.append(f"adapted {how}: {_examples(name for name, done in self.adapted if done == how)}")
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
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    encoder: str | None = None,
    min_share: float = 0.5,
    source: str = "",
) -> MatchReport:
    """Copy into the model every tensor of `state` that fits it by name and shape.

    Names are read whatever prefix they carry (names.py). Another number of input channels and another grid of tokens
    are adapted to (adapt.py); any other difference in shape leaves that tensor out.

    Args:
        encoder: the attribute of the model that holds its encoder; a state may hold that alone.
        min_share: the least share that must fit, 0 to 1: of the model's parameters, or of its encoder's.
        source: where the state comes from, for the message.

    Raises:
        UserError: less than `min_share` fits; the model is unchanged.
    """
    own = model.state_dict()
    names, renaming = rename(own, state, encoder)
    found = {name: state[theirs] for name, theirs in names.items()}
    adapted = adapt(model, own, found)
    fitting = {name: x for name, x in found.items() if x.shape == own[name].shape and name not in adapted}
    fitting |= {name: x for name, (x, _) in adapted.items()}

    num_parameters = {name: x.numel() for name, x in model.named_parameters(remove_duplicate=False)}
    used = set(names.values())
    report = MatchReport(
        **_count("", own, fitting, num_parameters),
        missing=tuple(name for name in own if name not in found),
        unexpected=tuple(name for name in state if name not in used),
        mismatched=tuple(
            (name, tuple(x.shape), tuple(found[name].shape))
            for name, x in own.items()
            if name in found and name not in fitting
        ),
        adapted=tuple((name, how) for name, (_, how) in adapted.items()),
        renaming=renaming,
        encoder=None if encoder is None else Count(**_count(f"{encoder}.", own, fitting, num_parameters)),
    )
    if not report.suffices(min_share):
        raise UserError(_refusal(report, min_share, source))
    with torch.no_grad():
        for name, x in fitting.items():
            own[name].copy_(x)
    return report


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pt file, on the CPU: the whole file, or its "model", "state_dict", ...

    Nothing but tensors, numbers and plain containers is unpickled, so a file from elsewhere cannot run code.

    Raises:
        UserError: the file cannot be read or holds no state dict.
    """
    content = read_file(path)
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


def read_file(path: Path) -> Any:
    """The content of a .pt file, on the CPU, tensors mapped and not read where the format allows it.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS):
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


def _count(
    part: str, own: Mapping[str, Tensor], fitting: Mapping[str, Tensor], num_parameters: Mapping[str, int]
) -> dict[str, int]:
    """The fields of a `Count` over the names that begin with `part`."""
    total = [name for name in own if name.startswith(part)]
    matched = [name for name in total if name in fitting]
    return {
        "matched": len(matched),
        "total": len(total),
        "matched_parameters": sum(num_parameters.get(name, 0) for name in matched),
        "total_parameters": sum(num_parameters.get(name, 0) for name in total),
    }


def _refusal(report: MatchReport, min_share: float, source: str) -> str:
    text = (
        f"{source or 'these weights'}: only {report.percent} of the network's parameters fit"
        f" ({report.matched} of {report.total} tensors)"
    )
    if report.encoder is not None:
        text += f" and {report.encoder.percent} of its encoder's"
    text += f", at least {100 * min_share:.0f} % are needed"
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
