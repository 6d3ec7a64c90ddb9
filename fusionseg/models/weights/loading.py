"""Loading of weights into a network, with a report of the tensors that were loaded and of those that were not."""

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

from fusionseg.models.sharding.tensors import copy_
from fusionseg.models.weights.nnunet import STATE_KEY, is_residual_encoder, residual_encoder_state
from fusionseg.models.weights.resizing import resize_tensors
from fusionseg.models.weights.tensor_names import PrefixChange, match_names
from fusionseg.utils.errors import UserError

Shape = tuple[int, ...]

_STATE_KEYS = ("model", "state_dict", "model_state_dict", "net", STATE_KEY, "student", "teacher")
_NUM_EXAMPLES = 4

# Types that published checkpoints contain beside the weights: NumPy scalars, such as the best Dice (NumPy 1 wrote them
# under another name), and the parsed command line. Unpickling them runs no code.
_scalar = np.float64(0).__reduce__()[0]
_SAFE_TYPES: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    Namespace,
]


@dataclass(frozen=True)
class MatchCount:
    """Number of tensors and parameters of a model, or of its encoder, that a state dict provides.

    Buffers are tensors, but not parameters.
    """

    matched: int
    """Tensors that are in the state dict with the right shape, or could be resized to it."""
    total: int
    """All tensors."""
    matched_parameters: int
    """Parameters (numbers) in the matched tensors."""
    total_parameters: int
    """All parameters (numbers)."""

    @property
    def share(self) -> float:
        """Matched fraction of the parameters, 0 to 1."""
        return self.matched_parameters / self.total_parameters if self.total_parameters else 1.0

    @property
    def percent(self) -> str:
        """The share as text, such as "67.6 %"."""
        return f"{100 * self.share:.1f} %"


@dataclass(frozen=True)
class MatchReport(MatchCount):
    """Result of `load_weights`: the matched tensors of a model, and all differences."""

    missing: tuple[str, ...]
    """Tensors of the model that are not in the state dict."""
    unexpected: tuple[str, ...]
    """Tensors of the state dict that are not in the model, with the names of the state dict."""
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    """Tensors that were not loaded because of their shape: name, shape in the model, shape in the state dict."""
    resized: tuple[tuple[str, str], ...]
    """Tensors that were resized and loaded: name in the model, and the change in words."""
    prefix_change: PrefixChange
    """Change of the prefix that gives the names of the model."""
    encoder: MatchCount | None
    """Matched tensors of the encoder; None if the model has no encoder that can be pre-trained."""

    @property
    def encoder_only(self) -> bool:
        """True if all matched tensors are in the encoder."""
        return self.encoder is not None and self.matched == self.encoder.matched > 0

    def suffices(self, min_share: float) -> bool:
        """Tell whether at least `min_share` of the parameters matched, of the model or of its encoder.

        The encoder counts too, because it can be a small part of the model: an eighth of the parameters of Swin UNETR.

        Args:
            min_share: fraction of the parameters, 0 to 1.
        """
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
        if str(self.prefix_change):
            parts.append(f"renamed {self.prefix_change}")
        for change in dict.fromkeys(change for _, change in self.resized):
            parts.append(f"resized {change}: {_examples(name for name, done in self.resized if done == change)}")
        if self.missing:
            parts.append(f"not found: {_examples(self.missing)}")
        if self.mismatched:
            parts.append(f"shape differs: {self.shape_differences}")
        if self.unexpected:
            parts.append(f"not used: {_examples(self.unexpected)}")
        return "; ".join(parts)

    @property
    def shape_differences(self) -> str:
        """Examples of tensors that differ in shape, as text."""
        return _examples(f"{name} (model {here}, file {there})" for name, here, there in self.mismatched)


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    encoder: str | None = None,
    min_share: float = 0.5,
    source: str = "",
) -> MatchReport:
    """Copy every tensor of a state dict whose name and shape match into a model.

    Prefixes of names may differ (see `tensor_names`). Tensors for another number of input channels or another grid of
    tokens are resized (see `resizing`). Other tensors of a different shape are not loaded.

    Args:
        model: it is changed in place.
        state: name -> tensor.
        encoder: attribute of the model that is its encoder; `state` may be the state dict of the encoder alone.
        min_share: fraction of the parameters of the model, or of its encoder, that must match, 0 to 1.
        source: file of the state dict, for the message.

    Raises:
        UserError: less than `min_share` matches; the model is unchanged.
    """
    own = model.state_dict()
    names, prefix_change = match_names(own, state, encoder)
    found = {name: state[state_name] for name, state_name in names.items()}
    resized = resize_tensors(model, own, found)
    fitting = {name: x for name, x in found.items() if x.shape == own[name].shape and name not in resized}
    fitting |= {name: x for name, (x, _) in resized.items()}

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
        resized=tuple((name, change) for name, (_, change) in resized.items()),
        prefix_change=prefix_change,
        encoder=None if encoder is None else MatchCount(**_count(f"{encoder}.", own, fitting, num_parameters)),
    )
    if not report.suffices(min_share):
        raise UserError(_refusal(report, min_share, source))
    for name, x in fitting.items():
        copy_(own[name], x)
    return report


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a .pt file to the CPU; see `read_file` and `state_of`.

    Raises:
        UserError: the file cannot be read or holds no state dict.
    """
    return state_of(read_file(path), path)


def state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in the content of a file: the whole content, or its "model", "state_dict" or a similar key.

    Kernels of nnU-Net's residual-encoder U-Net are brought to the axes X, Y, Z.

    Args:
        content: of the file.
        path: of the file, for the message.

    Raises:
        UserError: there is no state dict.
    """
    if is_residual_encoder(content):
        return residual_encoder_state(content)
    inner = [content[key] for key in _STATE_KEYS if key in content] if isinstance(content, Mapping) else []
    for candidate in [*inner, content]:
        if isinstance(candidate, Mapping):
            state = {str(name): x for name, x in candidate.items() if isinstance(x, Tensor)}
            if state:
                return state
    got = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        got = f"a dictionary of {_examples(map(str, content)) or 'nothing'}"
    raise UserError(
        f"{path}: no weights found (expected a state dict, or one under {', '.join(_STATE_KEYS)}, got {got}); save the"
        " weights as torch.save(model.state_dict(), path)"
    )


def read_file(path: Path) -> Any:
    """Read a .pt file to the CPU. Tensors are memory-mapped if the format of the file allows it.

    Only tensors, numbers and plain containers are unpickled: a file from an unknown source cannot run code.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with torch.serialization.safe_globals(_SAFE_TYPES):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the file format before torch 1.6 cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        # torch's own message is not shown: it suggests weights_only=False, which would run code of the file.
        raise UserError(
            f"{path}: not a PyTorch file, or it contains other objects than tensors and plain containers; save the"
            " weights as torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise UserError(f"{path}: damaged, truncated or not a PyTorch file; copy it again") from error


def _count(
    prefix: str, own: Mapping[str, Tensor], fitting: Mapping[str, Tensor], num_parameters: Mapping[str, int]
) -> dict[str, int]:
    """Return the fields of a `MatchCount` of the tensors whose names begin with `prefix`."""
    total = [name for name in own if name.startswith(prefix)]
    matched = [name for name in total if name in fitting]
    return {
        "matched": len(matched),
        "total": len(total),
        "matched_parameters": sum(num_parameters.get(name, 0) for name in matched),
        "total_parameters": sum(num_parameters.get(name, 0) for name in total),
    }


def _refusal(report: MatchReport, min_share: float, source: str) -> str:
    text = (
        f"{source or 'these weights'}: only {report.percent} of the network's parameters match"
        f" ({report.matched} of {report.total} tensors)"
    )
    if report.encoder is not None:
        text += f" and {report.encoder.percent} of its encoder's"
    text += f" (expected at least {100 * min_share:.0f} %)"
    if report.missing:
        text += f"; the network has {_examples(report.missing)}"
    if report.unexpected:
        text += f"; the file has {_examples(report.unexpected)}"
    if report.mismatched:
        text += f"; shape differs: {report.shape_differences}"
    return text + "; nothing was loaded. Check that model.name and model.feature_size are those of the trained network"


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join([*listed[:_NUM_EXAMPLES], *(["..."] if len(listed) > _NUM_EXAMPLES else [])])
