"""A network whose weights are divided among the ranks by `fully_shard`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fusionseg.models.sharding.tensors import is_sharded
from fusionseg.utils.errors import UserError


def shard_network_(model: nn.Module, units: Iterable[str], device: torch.device, *, bf16_gradients: bool) -> None:
    """Divide the weights of a network among all ranks of the process group, in place.

    Each unit is gathered for its forward pass and again for its backward pass. What is in no unit is gathered as one
    more unit, that of the whole network, which stays from the forward pass to the backward pass. The gradients are
    averaged over the ranks while they are divided.

    The weights lose the channels-last format, which `fully_shard` refuses.

    Args:
        model: the network, on its device. Its parameters become other objects: build the optimizer afterwards.
        units: names of modules, from `find_units`; a unit may be in another.
        device: the device of this rank.
        bf16_gradients: send the gradients in bfloat16, in which they are added too.

    Raises:
        UserError: the network has a weight without an axis.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise UserError(
                f"distributed.parallel: fsdp cannot divide the weight {name}, which has no axis (expected shape (1,));"
                " change the network, or set ddp"
            )
        parameter.data = parameter.data.contiguous()
    # Some blocks give views. `find_units` has no block whose output is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if bf16_gradients else None)
    for name in sorted(units, key=lambda each: each.count("."), reverse=True):  # the inner ones first
        fully_shard(model.get_submodule(name), mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def is_sharded_network(model: nn.Module) -> bool:
    """Tell whether the weights of a network are divided among the ranks."""
    return any(map(is_sharded, model.parameters()))


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Give each rank all weights of a divided network within the context, for forward passes without gradients.

    The ranks may call the network a different number of times. All ranks enter the context, and none waits for another
    after that. Other networks are left as they are.
    """
    if not is_sharded_network(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()
