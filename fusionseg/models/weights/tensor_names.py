"""Matching of the tensor names of a file with those of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Components that torch.compile, FSDP and activation checkpointing insert into names.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Names of MONAI's modules in published encoders.
_MONAI_NAMES = (
    (re.compile(r"\bmlp\.fc([12])\."), r"mlp.linear\1."),  # Swin UNETR's authors (model_swinvit.pt), timm
    (re.compile(r"\blayers(\d)\.0\.0\."), r"layers\1.0."),  # Disruptive Autoencoders (ssl_pretrained_weights.pth)
    (re.compile(r"\bpatch_embeddings\.1\."), r"patch_embeddings."),  # UNETR's linear patch embedding, see resizing.py
    (re.compile(r"^(.*\.)?blocks\.\d+\.(weight|bias)$"), r"\1norm.\2"),  # the last norm of MaskedAutoEncoderViT
)


@dataclass(frozen=True)
class PrefixChange:
    """Change of the names of a file: a prefix is removed, and another one is added."""

    removed: str = ""
    added: str = ""

    def __str__(self) -> str:
        return f"{self.removed}* to {self.added}*" if self.removed or self.added else ""


def match_names(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], encoder: str | None
) -> tuple[dict[str, str], PrefixChange]:
    """Match the names of a file with the names of a network.

    A checkpoint may contain the network as a part of another module (`module.student.backbone.swinViT.x`), or an
    encoder alone (`module.x`, `encoder.x`, `x`). A fixed list of prefixes would not cover these. So every number of
    leading components is removed, and the encoder's name is added or not; the change that matches most parameters is
    used. If several changes match equally many, names without a change come first, then the first in the file. Names
    without the removed prefix stay as they are.

    Args:
        own: the network's tensors by name.
        state: the file's tensors by name.
        encoder: attribute of the network that is its encoder.

    Returns:
        names of the network -> names of the file, for tensors of any shape; and the change of the prefix.
    """
    spellings = {name: _spellings(name) for name in state}
    prefixes = ["", f"{encoder}."] if encoder else [""]
    # Votes: parameters that match in name and shape, then names that match. The second counts if no shape matches.
    votes: dict[PrefixChange, list[int]] = {PrefixChange(): [0, 0]}
    for name, tensor in state.items():
        candidates: dict[PrefixChange, Tensor] = {}
        for spelling in spellings[name]:
            parts = spelling.split(".")
            for cut in range(len(parts)):
                rest = ".".join(parts[cut:])
                for prefix in prefixes:
                    if (here := own.get(prefix + rest)) is not None:
                        candidates.setdefault(PrefixChange(spelling[: -len(rest)], prefix), here)
        for change, here in candidates.items():
            vote = votes.setdefault(change, [0, 0])
            vote[0] += here.numel() if here.shape == tensor.shape else 0
            vote[1] += 1
    best = max(votes, key=lambda change: votes[change])

    inside: dict[str, str] = {}
    outside: dict[str, str] = {}
    for name, ways in spellings.items():
        for spelling in ways:
            if spelling.startswith(best.removed) and (known := best.added + spelling[len(best.removed) :]) in own:
                inside.setdefault(known, name)
                break
            if spelling in own:
                outside.setdefault(spelling, name)
                break
    return {**outside, **inside}, best


def _spellings(name: str) -> tuple[str, ...]:
    """Return the name as it is, without wrappers, and with the names of MONAI's modules, without duplicates."""
    plain = _WRAPPERS.sub("", name)
    spelled = plain
    for pattern, monai_name in _MONAI_NAMES:
        spelled = pattern.sub(monai_name, spelled)
    return tuple(dict.fromkeys((name, plain, spelled)))
