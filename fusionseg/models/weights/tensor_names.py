"""Reading other people's names: which tensor of a file is which tensor of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Components that wrappers put anywhere into a name: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What published encoders call MONAI's modules.
_SPELLINGS = (
    (re.compile(r"\bmlp\.fc([12])\."), r"mlp.linear\1."),  # Swin UNETR's authors (model_swinvit.pt), timm
    (re.compile(r"\blayers(\d)\.0\.0\."), r"layers\1.0."),  # Disruptive Autoencoders (ssl_pretrained_weights.pth)
    (re.compile(r"\bpatch_embeddings\.1\."), r"patch_embeddings."),  # UNETR's linear patch embedding, see adapt.py
    (re.compile(r"^(.*\.)?blocks\.\d+\.(weight|bias)$"), r"\1norm.\2"),  # the last norm of MaskedAutoEncoderViT
)


@dataclass(frozen=True)
class Renaming:
    """What is taken off the names of a file, and what is put before the rest."""

    off: str = ""
    on: str = ""

    def __str__(self) -> str:
        return f"its {self.off}* as {self.on}*" if self.off or self.on else ""


def rename(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], encoder: str | None
) -> tuple[dict[str, str], Renaming]:
    """Find the names of a file that mean names of a network.

    A checkpoint may hold the network deep inside something else (`module.student.backbone.swinViT.x`), or an encoder
    alone (`module.x`, `encoder.x`, `x`). So no list of prefixes: leading components are taken off, and the encoder's
    name is put in front or not, whichever way the most parameters find their place. Equally good ways: the names as
    they are, else what stands first in the file. A name outside that prefix keeps its own.

    Args:
        own: the network's tensors.
        state: the file's.
        encoder: the network's attribute that holds its encoder.

    Returns:
        names of the network -> names of the file, whatever their shapes; and the renaming that led there.
    """
    readings = {name: _readings(name) for name in state}
    fronts = ["", f"{encoder}."] if encoder else [""]
    # numbers that fit, then names that are known: a file of which nothing fits is still read as far as it goes
    votes: dict[Renaming, list[int]] = {Renaming(): [0, 0]}
    for name, tensor in state.items():
        ways: dict[Renaming, Tensor] = {}
        for reading in readings[name]:
            parts = reading.split(".")
            for cut in range(len(parts)):
                rest = ".".join(parts[cut:])
                for front in fronts:
                    if (here := own.get(front + rest)) is not None:
                        ways.setdefault(Renaming(reading[: -len(rest)], front), here)
        for way, here in ways.items():
            vote = votes.setdefault(way, [0, 0])
            vote[0] += here.numel() if here.shape == tensor.shape else 0
            vote[1] += 1
    best = max(votes, key=lambda way: votes[way])

    inside: dict[str, str] = {}
    outside: dict[str, str] = {}
    for name, ways_to_read in readings.items():
        for reading in ways_to_read:
            if reading.startswith(best.off) and (known := best.on + reading[len(best.off) :]) in own:
                inside.setdefault(known, name)
                break
            if reading in own:
                outside.setdefault(reading, name)
                break
    return {**outside, **inside}, best


def _readings(name: str) -> tuple[str, ...]:
    """A name as it stands and, if that differs, in MONAI's spelling."""
    plain = _WRAPPERS.sub("", name)
    spelled = plain
    for theirs, monai in _SPELLINGS:
        spelled = theirs.sub(monai, spelled)
    return tuple(dict.fromkeys((name, plain, spelled)))
