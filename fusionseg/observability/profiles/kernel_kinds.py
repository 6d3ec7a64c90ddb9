"""Kinds of kernels, recognised by the kernel's name."""

from __future__ import annotations

import re

from fusionseg.observability.profiles.timeline import DeviceEvent

COMMUNICATION = "communication"
COPY = "copy"
OTHER = "other"

# The first matching pattern decides, so the order matters: names of copy kernels contain "elementwise", names of
# normalisation kernels contain "reduce", and the kernels of the gradient norm contain "norm" but reduce.
_PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (COMMUNICATION, r"nccl|nvshmem|all_?reduce|all_?gather|reduce_?scatter"),
        (COPY, r"copy|nchwtonhwc|nhwctonchw|transpose|permute"),
        ("reduction", r"\breduce_kernel|lpnorm|normtwo|softmax"),
        ("normalisation", r"norm|\bbn_|rowwisemoments|computefusedparams|gammabeta"),
        (
            "matrix, convolution",
            r"gemm|gemv|splitk|cutlass|xmma|nvjet|cublas|wgmma|conv|wgrad|dgrad|fprop|winograd|fft|im2col|vol2col"
            r"|flash|fmha|attention",
        ),
        ("reduction", r"reduce|triton_(red|per)_|argm(ax|in)|cumsum|scan"),
        ("elementwise", r"elementwise|triton_poi_|multi_tensor|foreach|fill|dropout|activation|gelu|relu"),
    )
)
KINDS = (*dict.fromkeys(kind for kind, _ in _PATTERNS), OTHER)


def kernel_kind(event: DeviceEvent) -> str:
    """Classify a device event as one of KINDS; copies and fills of memory are COPY."""
    if event.kind != "kernel":
        return COPY
    return next((kind for kind, pattern in _PATTERNS if pattern.search(event.name)), OTHER)
