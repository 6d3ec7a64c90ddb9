"""Networks as programs of other libraries: TorchScript, `torch.export` and ONNX.

Each program maps float32 windows (B, C, X, Y, Z) to logits (B, K, X, Y, Z), float32, whatever the precision of the
training was. The size of a window is that of the training's patch.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writing

Run = Callable[[Tensor], Tensor]
INPUT, OUTPUT = "image", "logits"
"""Names of the input and the output of an ONNX program."""
EXAMPLE_BATCH = 2
"""Windows of the example. With one window, `torch.export` would take 1 for a constant."""


@dataclass(frozen=True)
class ProgramFormat:
    """A kind of program."""

    suffix: str
    write: Callable[[nn.Module, Tensor, Path], None]
    """Writes the program of a network (in evaluation mode, float32, on the CPU) from an example of its input."""
    open: Callable[[Path], Run]
    """Opens a program, to compare it with its network."""
    needs: tuple[str, ...] = ()
    """Packages beside torch, of the extra `export`."""


def write_program(kind: str, model: nn.Module, shape: tuple[int, ...], path: Path) -> int | None:
    """Write the program of a network, and compare both on random windows.

    Args:
        kind: one of `FORMATS`.
        model: the network, in evaluation mode, float32, on the CPU.
        shape: of a window, (C, X, Y, Z).
        path: the file.

    Returns:
        The number of windows that the program takes at once; None if it takes any number.

    Raises:
        UserError: the network cannot be written in this format, or the program gives other values.
        WriteError: the file cannot be written, because the disk is full, for example.
    """
    generator = torch.Generator().manual_seed(0)
    example = torch.randn((EXAMPLE_BATCH, *shape), generator=generator)
    with torch.no_grad(), writing(path):
        try:
            return _write(kind, model, example, path)
        except (OSError, MemoryError):  # of the machine, not of the network
            raise
        except _OtherValues as error:
            raise UserError(
                f"--format {kind}: the program gives other values than its network: {error}; try another format"
            ) from None
        except Exception as error:  # the exporters of torch raise many kinds
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"--format {kind}: torch {torch.__version__} cannot export this network"
                f" ({type(error).__name__}: {reason}); try another format"
            ) from error


def _write(kind: str, model: nn.Module, example: Tensor, path: Path) -> int | None:
    """Write a program for any number of windows, or else for one; return the number, None for any."""
    form = FORMATS[kind]
    model(example[:1])  # networks keep masks and indices; made by an exporter, they would be no real tensors
    try:
        with _quiet():
            form.write(model, example, path)
        _compare(form.open(path), model, [example, example[:1], torch.cat([example, example])[:3]])
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a program may take the number of windows of the example for a constant
        logging.getLogger("fusionseg").debug("a program for any number of windows failed: %s", error)
    else:
        return None
    with _quiet():
        form.write(model, example[:1], path)
    _compare(form.open(path), model, [example[:1], example[1:]])
    return 1


class _OtherValues(Exception):
    """A program gives other values than its network."""


def _compare(run: Run, model: nn.Module, inputs: list[Tensor]) -> None:
    """Compare a program with its network.

    Raises:
        _OtherValues: the values differ by more than the rounding of float32.
    """
    for windows in inputs:
        expected, found = model(windows), run(windows)
        scale = float(expected.abs().max()) or 1.0
        apart = float((found - expected).abs().max())
        if found.shape != expected.shape or not apart <= 1e-3 * scale:
            raise _OtherValues(f"its logits differ by {apart:.3g} (of at most {scale:.3g})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of torch's exporters about their own progress from the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- TorchScript -----------------------------------------------------------------------------------------------------


def _write_torchscript(model: nn.Module, example: Tensor, path: Path) -> None:
    traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
    if "PythonOp" in str(traced.inlined_graph):
        raise RuntimeError("a part of it is a Python function, which TorchScript cannot save")
    content = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
    torch.jit.save(traced, content)  # type: ignore[no-untyped-call]
    path.write_bytes(content.getbuffer())


def has_fixed_device(path: Path) -> bool:
    """Tell whether a TorchScript program makes tensors on the device of its writing, so that it runs on no other.

    Args:
        path: the program.
    """
    program = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return "Device = prim::Constant" in str(program.inlined_graph)


def _open_torchscript(path: Path) -> Run:
    program = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    return lambda windows: program(windows)


# -- torch.export ----------------------------------------------------------------------------------------------------


def _export(model: nn.Module, example: Tensor) -> Any:
    dynamic = {0: torch.export.Dim.DYNAMIC} if len(example) > 1 else None
    return torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)


def _write_torch(model: nn.Module, example: Tensor, path: Path) -> None:
    content = io.BytesIO()  # as for TorchScript
    torch.export.save(_export(model, example), content)
    path.write_bytes(content.getbuffer())


def _open_torch(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda windows: program(windows)


# -- ONNX ------------------------------------------------------------------------------------------------------------


def _write_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    torch.onnx.export(
        _export(model, example),
        (),
        path,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamo=True,
        external_data=_bytes(model) > LARGEST_FILE,
        verbose=False,
    )


LARGEST_FILE = 1_500_000_000
"""Bytes of weights in one ONNX file. Protobuf allows 2 GB; above this, they lie in a file beside it."""


def _bytes(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda windows: torch.from_numpy(session.run(None, {name: windows.numpy()})[0])


FORMATS = {
    "onnx": ProgramFormat(".onnx", _write_onnx, _open_onnx, ("onnx", "onnxruntime", "onnxscript")),
    "torchscript": ProgramFormat(".ts", _write_torchscript, _open_torchscript),
    "torch": ProgramFormat(".pt2", _write_torch, _open_torch),
}
