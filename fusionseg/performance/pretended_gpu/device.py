"""Properties, pinned memory and waits of the pretended GPU, which a CPU build of torch does not know."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional
from torch.utils._device import _device_constructors

from fusionseg.data.loading.axis_matrices import coarser

_TOTAL_BYTES = 80_000_000_000
_missing = torch.library.Library("aten", "IMPL")


@contextmanager
def pretended_gpu(capability: tuple[int, int] = (9, 0), waits: list[str] | None = None) -> Iterator[None]:
    """Complete the pretended GPU within the context.

    Args:
        capability: compute capability; (9, 0) is an H100, (7, 5) a T4.
        waits: receives the place of every call that waits for the whole device.
    """
    found = [] if waits is None else waits
    _device_constructors()  # torch keeps the list of functions that make tensors, which are replaced below

    def synchronize(_: Any = None) -> None:
        found.append("".join(traceback.format_stack(limit=4)[:-1]))

    replaced: dict[str, Any] = {
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.set_device": _nothing,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_capability": lambda *_: capability,
        "torch.cuda.get_device_name": lambda *_: "pretended GPU",
        "torch.cuda.get_device_properties": lambda *_: SimpleNamespace(
            uuid="pretended", name="pretended GPU", total_memory=_TOTAL_BYTES, major=capability[0], minor=capability[1]
        ),
        "torch.cuda.mem_get_info": lambda *_: (_TOTAL_BYTES * 7 // 8, _TOTAL_BYTES),
        "torch.cuda.memory_reserved": lambda *_: 0,
        "torch.cuda.memory_allocated": lambda *_: 0,
        "torch.cuda.max_memory_allocated": lambda *_: 0,
        "torch.cuda.get_rng_state": _nothing,
        "torch.cuda.set_rng_state": _nothing,
        "torch.cuda.reset_peak_memory_stats": _nothing,
        "torch.cuda.synchronize": synchronize,
        "torch.cuda.Event": _Event,
        "torch.cuda.Stream": _Stream,
        "torch.cuda.current_stream": _Stream,
        "torch.cuda.stream": nullcontext,
        "torch.cuda.CUDAGraph": _Graph,
        "torch.cuda.graph": lambda graph, **_: nullcontext(graph),
        "torch.cuda.graph_pool_handle": lambda: (0, 0),
        "torch.cuda.is_bf16_supported": lambda *_, **__: capability >= (8, 0),
        "torch.cuda.manual_seed_all": _nothing,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.Tensor.pin_memory": _same,
        "torch.nn.Module.to": _module_to,
        "torch.empty": _without_pinning(torch.empty),
        "torch.arange": _real_on_host(torch.arange),
        "fusionseg.data.loading.axis_matrices.coarser": _real_on_host(coarser),
        # The patches of a cache on the host are cut there, which launches nothing on the device.
        "fusionseg.data.loading.patch_augmenter.PatchAugmenter._fill": _nothing,
        "torch.nn.functional.scaled_dot_product_attention": _attention,
        "torch.nn.init.trunc_normal_": _same,  # it reads a value
        # The foreach form of the gradient norm and of the optimizers is chosen by the type of the tensors, and a fake
        # tensor is a type of its own.
        "torch.nn.utils.clip_grad._has_foreach_support": lambda *_: True,
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))
        yield


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """Call the memory-efficient kernel, as torch does on a GPU; a build without CUDA cannot choose it.

    Like torch, pad the rows of the mask first if they do not begin at multiples of eight elements.
    """
    if attn_mask is not None:
        length = attn_mask.shape[-1]
        *strides, last = attn_mask.stride()
        if last != 1 or any(stride % 8 for stride in strides):
            attn_mask = functional.pad(attn_mask, (0, -length % 8))[..., :length]
        attn_mask = attn_mask.expand(*query.shape[:-1], length)
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True)[0]
    return out


class _Event:
    """An event of the stream. The stream of the pretended GPU takes no time."""

    def __init__(self, *, enable_timing: bool = False) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: _Event) -> float:
        return 0.0


class _Stream:
    """A stream. The operators of the pretended GPU have no order."""

    def __init__(self, _: Any = None, *, priority: int = 0) -> None: ...

    def wait_stream(self, other: _Stream) -> None: ...

    def wait_event(self, event: _Event) -> None: ...

    def record_event(self) -> _Event:
        return _Event()


class _Graph:
    """A CUDA graph, whose recording calls the operators once. Replaying it calls none of them."""

    def replay(self) -> None: ...


def _nothing_at_all(*_: Any, **__: Any) -> None:
    return None


def _nothing(*_: Any) -> None:
    return None


def _module_to(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module: the parameters of its own method cannot become fake tensors on another device in place."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    new = nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
                    moved[id(parameter)] = new
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    return module


def _same(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


def _real_on_host(function: Any) -> Any:
    """Compute a function of the host: MONAI's losses make a list of `arange`, our augmentation an array of a tensor."""

    @wraps(function)
    def computed(*args: Any, device: torch.device | str | None = None, **settings: Any) -> Any:
        if device is not None:
            if torch.device(device).type == "cuda":
                return function(*args, device=device, **settings)
            settings["device"] = device
        with unset_fake_temporarily():
            return function(*args, **settings)

    return computed


def _without_pinning(empty: Any) -> Any:
    def allocate(*args: Any, pin_memory: bool = False, **settings: Any) -> Tensor:
        result: Tensor = empty(*args, **settings)
        return result

    return allocate


for _name in ("adamw", "adam", "sgd"):  # torch 2.13 has no fake form of these, which write their arguments alone
    _missing.impl(f"_fused_{_name}_.tensor_lr", _nothing_at_all, "Meta")
