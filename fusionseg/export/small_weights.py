"""ONNX programs with weights in smaller types: fp16, and int8 with a scale for each output channel.

Each small array is turned into float32 by an operator of its own before it is used, so that all sums are computed in
float32. This makes the file smaller. It makes the prediction neither faster nor slower.

Source of int8: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018, sections 2
and 3.1, arXiv:1806.08342): symmetric integers, a scale for each output channel, no data for calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionseg.export.programs import FORMATS, LARGEST_FILE
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writing

FULL = "fp32"
FP16 = "fp16"
INT8 = "int8"
WEIGHTS = (FULL, FP16, INT8)
"""The types of weights in a file."""

_SMALLEST = 256
"""Values of an array. Smaller ones stay float32: they are a small part of a file, and norms are sensitive to them."""
_LARGEST_INT8 = 127
_NUMBER_OF_AXES_OF_KERNELS = 5
"""(outputs, inputs, X, Y, Z). No other array of a network has as many."""


def store_weights(path: Path, weights: str, shape: Sequence[int]) -> None:
    """Store the weights of an ONNX program in a smaller type.

    fp16 stores each array of weights. int8 stores those of convolutions and matrix products, and the others (position
    embeddings, for example) in fp16. An array with values that fp16 cannot hold (above 65504) stays float32.

    Args:
        path: the program, which is replaced, and so is the file of its weights beside it (`network.onnx.data`).
        weights: "fp16" or "int8".
        shape: of a window, (C, X, Y, Z), to try the new program.

    Raises:
        UserError: onnxruntime cannot run the new program, or it gives values that are not finite.
        WriteError: a file cannot be written, because the disk is full, for example.
    """
    import onnx

    model = onnx.load(path)
    _shrink(model.graph, weights)
    model.metadata_props.add(key="weights", value=weights)
    beside = path.with_name(f"{path.name}.data")
    with writing(path):
        beside.unlink(missing_ok=True)  # onnx would add to it; its arrays are in memory
        if sum(len(array.raw_data) for array in model.graph.initializer) > LARGEST_FILE:
            onnx.save(model, path, save_as_external_data=True, location=beside.name)
        else:
            onnx.save(model, path)
    _try(path, weights, shape)


def program_megabytes(folder: Path) -> float:
    """Size of the ONNX programs of a model, with the files of their weights.

    Args:
        folder: of the model.
    """
    return sum(file.stat().st_size for file in folder.glob("network*.onnx*")) / 1e6


def _shrink(graph: Any, weights: str) -> None:
    """Replace the large float32 arrays of a graph by small ones, and operators that give the old ones by their names.

    The names stay, so that the operators that use an array need no change.
    """
    from onnx import TensorProto

    axes = _channel_axes(graph) if weights == INT8 else {}
    inputs = {value.name for value in graph.input}
    arrays, operators = [], []
    for array in graph.initializer:
        is_weight = array.data_type == TensorProto.FLOAT and array.name not in inputs and len(array.dims) >= 2
        small = _small(array, axes) if is_weight and np.prod(array.dims) >= _SMALLEST else None
        if small is None:
            arrays.append(array)
            continue
        arrays += small[0]
        operators.append(small[1])
    operators += graph.node
    for field, values in ((graph.initializer, arrays), (graph.node, operators)):
        del field[:]
        field.extend(values)


def _small(array: Any, axes: dict[str, int]) -> tuple[list[Any], Any] | None:
    """The small arrays of a float32 array, and the operator that turns them into it; None if it has to stay.

    Args:
        array: an initializer of a graph.
        axes: the axis of the output channels of those that become int8, by name; the others become fp16.
    """
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.to_array(array)
    if not np.abs(values).max() <= np.finfo(np.float16).max:  # also of NaN
        return None
    name = array.name
    axis = axes.get(name, 0 if values.ndim == _NUMBER_OF_AXES_OF_KERNELS else None) if axes else None
    if axis is None:
        stored = numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16")
        return [stored], helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT)
    integers, scales = quantized(values, axis)
    small = [numpy_helper.from_array(integers, f"{name}_int8"), numpy_helper.from_array(scales, f"{name}_scale")]
    return small, helper.make_node("DequantizeLinear", [part.name for part in small], [name], axis=axis)


def quantized(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights to integers from -127 to 127 times a scale for each channel.

    Args:
        values: the weights, finite.
        axis: of the channels.

    Returns:
        The integers, and the scales (channels). Their product differs from the weights by half a scale at most.
    """
    others = tuple(other for other in range(values.ndim) if other != axis)
    scales = np.abs(values).max(axis=others) / np.float32(_LARGEST_INT8)
    scales = np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1)).astype(np.float32)
    integers = np.rint(values / np.expand_dims(scales, others))
    return np.clip(integers, -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8), scales


def _channel_axes(graph: Any) -> dict[str, int]:
    """The axis of the output channels, for the names of the weights of convolutions and matrix products."""
    axes: dict[str, int] = {}
    dims = {array.name: len(array.dims) for array in graph.initializer}
    for node in graph.node:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        by_operator = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else 1}
        if len(node.input) < 2 or node.input[1] not in dims:
            continue
        name = node.input[1]
        if node.op_type in by_operator:
            axes[name] = by_operator[node.op_type]
        elif node.op_type == "MatMul":
            axes[name] = dims[name] - 1
    return axes


def _try(path: Path, weights: str, shape: Sequence[int]) -> None:
    """Run a new program on a window of random values."""
    window = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    try:
        logits = FORMATS["onnx"].open(path)(window)
    except Exception as error:  # the kinds of onnxruntime have no common base
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--weights {weights}: onnxruntime cannot run {path.name} ({reason}); take --weights {FULL}"
        ) from None
    if not torch.isfinite(logits).all():
        raise UserError(f"--weights {weights}: {path.name} gives values that are not finite; take --weights {FULL}")
