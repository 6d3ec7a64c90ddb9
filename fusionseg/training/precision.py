"""Precision of the forward pass, chosen from the device, with the reason; torch's settings of the kernels of a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from fusionseg.config import TrainConfig
from fusionseg.training.numerics.determinism import set_deterministic
from fusionseg.utils.errors import UserError


@dataclass(frozen=True)
class Precision:
    """Precision of the forward pass; parameters and optimizer states are always float32."""

    name: str
    reason: str
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled: fp16 gradients underflow without it (Micikevicius et al., 2018)."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager[None]:
        # The default casts each weight once per forward pass; cache_enabled=False would cast it at each use.
        return torch.autocast(self.device_type, self.dtype, enabled=self.name != "fp32")


def set_kernels(config: TrainConfig, device: torch.device) -> None:
    """Set which kernels torch takes: deterministic ones, and on a GPU TF32 and cuDNN's search.

    The settings are those of the process. Matrix products have the older setting alone: torch refuses to read it after
    one of the newer `fp32_precision` was set, and other parts of the program read it.

    Args:
        config: the `train` section.
        device: device of this rank.

    Raises:
        UserError: `deterministic` is not possible in this environment.
    """
    set_deterministic(config)
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = config.tf32 != "none"
    torch.set_float32_matmul_precision("high" if config.tf32 == "all" else "highest")


def choose_precision(request: str, device: torch.device) -> Precision:
    """Choose the precision of the forward pass on the device of this rank.

    Args:
        request: `auto`, `fp32`, `bf16` or `fp16`.
        device: device of this rank.

    Raises:
        UserError: the device does not support the precision.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return precision_for(request, device.type, capability, native_bf16=has_bf16(device))


def has_bf16(device: torch.device) -> bool:
    """Return whether the device computes in bf16 without emulation.

    Args:
        device: a GPU or the CPU.
    """
    return torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else cpu_has_bf16()


def precision_for(
    request: str, device_type: str, capability: tuple[int, int] | None, *, native_bf16: bool
) -> Precision:
    """Choose the precision from the properties of a device.

    Args:
        request: `auto`, `fp32`, `bf16` or `fp16`.
        device_type: `cuda` or `cpu`.
        capability: compute capability of a GPU; None for the CPU.
        native_bf16: whether the device computes in bf16 without emulation.

    Raises:
        UserError: the device does not compute in this precision.
    """
    if request == "bf16" and device_type == "cuda" and not native_bf16:
        raise UserError(
            f"train.precision: bf16 is not possible on this GPU (compute capability {capability}, expected at least"
            " 8.0); set it to fp16 or auto"
        )
    if request != "auto":
        has_tf32 = request == "fp32" and (capability or (0, 0)) >= (8, 0)
        return Precision(request, f"as configured{_tf32_text() if has_tf32 else ''}", device_type)
    if native_bf16:
        reason = f"compute capability {capability}" if device_type == "cuda" else "the CPU has bf16 instructions"
        return Precision("bf16", f"auto: {reason}", device_type)
    if device_type == "cuda":
        return Precision(
            "fp16", f"auto: compute capability {capability} is before 8.0; with a loss scaler", device_type
        )
    return Precision("fp32", "auto: the CPU has no bf16 instructions", device_type)


def _tf32_text() -> str:
    if not torch.backends.cudnn.allow_tf32:
        return ""
    products = " and matrix products" if torch.get_float32_matmul_precision() != "highest" else ""
    return f"; its convolutions{products} in TF32, see train.tf32"


def cpu_has_bf16() -> bool:
    """Return whether this CPU computes in bf16 without emulation."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    if "AVX512" not in capabilities:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
