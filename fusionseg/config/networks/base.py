"""What the sections of all networks have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from fusionseg.config.section import Section


class NetworkSection(Section):
    """A `model` section. A network whose decoder has heads at several resolutions gives, in training and with
    its `deep_supervision` set, a list of logits, the full resolution first; else one tensor."""

    can_checkpoint: ClassVar[bool] = False
    """Whether the network can recompute its activations in the backward pass (train.checkpoint_activations)."""
    set_by_name: ClassVar[tuple[str, ...]] = ()
    """Keys that the name itself sets: another name of the family has others."""
    encoder: ClassVar[str | None] = None
    """Attribute of the network that holds an encoder which can be pre-trained: `swinViT`, `vit`, or none."""
    name: str

    @abstractmethod
    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""

    def encoder_patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """The same for pre-training its encoder."""
        return self.patch_problem(patch)


def multiple_problem(name: str, patch: tuple[int, int, int], multiple: int) -> str | None:
    """The problem of a network that halves its maps down to 1 / multiple, if the patch does not suit it."""
    too_small = max(patch) < 2 * multiple  # one voxel at the bottom: nothing to normalise over
    if not any(size % multiple for size in patch) and not too_small:
        return None
    fixed = [max(multiple, round(size / multiple) * multiple) for size in patch]
    if max(fixed) < 2 * multiple:
        fixed[patch.index(max(patch))] = 2 * multiple
    return (
        f"data.patch: {name} with these levels needs multiples of {multiple}, at least {2 * multiple} in one"
        f" axis, not {list(patch)}: try {fixed}"
    )
