"""What a kernel computes, told by its name."""

from __future__ import annotations

import re

from fusionseg.observability.profiles.timeline import DeviceWork

COMMUNICATION = "communication"
COPY = "copy"
OTHER = "other"

# The first that fits wins: a copy is an elementwise kernel too, a normalisation reduces, and the norm of the gradients
# is no normalisation.
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


def kernel_kind(work: DeviceWork) -> str:
    """One of KINDS."""
    if work.kind != "kernel":
        return COPY
    return next((kind for kind, pattern in _PATTERNS if pattern.search(work.name)), OTHER)
