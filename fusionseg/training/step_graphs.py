"""CUDA graphs of an optimizer step: each micro-step is recorded once, and replayed in all further steps.

A graph launches all kernels of a micro-step at once. It reads and writes the memory that the recorded step has used. So
what changes from step to step has to be at the same place in every step: the micro-batch is copied into tensors that
stay, the learning rates are tensors, and the loss scale, the counters and the states of the optimizer are on the device
anyway. The seed of the network's random numbers is set before a graph is replayed, which reads it then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fusionseg.config import RunConfig
from fusionseg.distributed.world import World
from fusionseg.observability.ranges import annotate
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.utils.errors import TrainingStopped, UserError

_WARM_UP = 3
"""Steps before the recording. They make the states of the optimizer and let the libraries take their workspaces."""
# torch's documentation ("CUDA semantics", usage with DistributedDataParallel) asks for as many. DDP sorts its buckets
# after the first one and measures the first ten, for which the next forward pass waits.
_WARM_UP_DDP = 11
_Plain = bool | int | float | str | None
Work = Callable[[MicroBatch], None]


class Recorder(Protocol):
    """Records what a function launches on a device."""

    def stream(self) -> AbstractContextManager[None]:
        """Run the body on the stream of the recordings, after the work of the current stream and before its next."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Call a function without running its kernels; return the function that runs them."""

    def reset(self) -> None:
        """Give back the memory of all recordings, which are not replayed any more."""


class CudaRecorder:
    """Records CUDA graphs that share their memory: they are replayed in the order in which they were recorded."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self.reset()

    @contextmanager
    def stream(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: one of them waits for the copy of a checkpoint.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay

    def reset(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()


class StaticBatch:
    """The tensors of a micro-batch at one place in memory, into which each micro-batch is copied."""

    def __init__(self) -> None:
        self._form: Any = None
        self._leaves: list[Any] = []

    def __call__(self, batch: MicroBatch) -> MicroBatch:
        """Copy a micro-batch; return it with the tensors that stay.

        Raises:
            TrainingStopped: its shapes, types or other values are not those of the first micro-batch.
        """
        leaves, tree = tree_flatten((batch.inputs, batch.target))
        if others := sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor | _Plain)}):
            raise TrainingStopped(
                "train.cuda_graph: inputs and target may be tensors, and tuples, lists and dictionaries of them (got"
                f" {', '.join(others)}); give these, or set train.cuda_graph=false"
            )
        # A tensor that is an input and a target too is copied once.
        first = [next(i for i, other in enumerate(leaves) if other is leaf) for leaf in leaves]
        form = (tree, first, [_form(leaf) for leaf in leaves])
        if self._form is None:
            self._form = form
            made = [torch.empty_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self._leaves = [made[index] for index in first]
        elif form != self._form:
            raise TrainingStopped(
                f"train.cuda_graph: needs micro-batches of one form (expected {_text(self._form)}, got {_text(form)});"
                " set it to false"
            )
        for index, leaf in enumerate(leaves):
            if first[index] == index and isinstance(leaf, Tensor):
                self._leaves[index].copy_(leaf)
        inputs, target = tree_unflatten(self._leaves, tree)
        return MicroBatch(inputs, target, batch.seed)


class StepGraphs:
    """Runs the micro-steps of a training: the first steps as they are, then recorded once, and then replayed.

    Args:
        recorder: of the device.
        optimizer: of the training; its learning rates become tensors.
        device: of the training.
        warm_up: steps that run as they are before the recording.
    """

    def __init__(
        self, recorder: Recorder, optimizer: torch.optim.Optimizer, device: torch.device, *, warm_up: int = _WARM_UP
    ) -> None:
        self.recorder = recorder
        self.optimizer = optimizer
        self.device = device
        self.warm_up = warm_up
        self._batch = StaticBatch()
        self._rates: dict[float, Tensor] = {}
        self._replays: dict[int, Callable[[], None]] = {}
        self._kind: Hashable = None
        self._steps = 0

    def begin(self, kind: Hashable) -> None:
        """Begin a step.

        Args:
            kind: what the operators of a step depend on. With another kind than before, the steps are recorded anew.
        """
        if kind != self._kind:
            self.forget()
            self._kind = kind
        self._steps += 1

    def forget(self) -> None:
        """Forget the recordings: the next steps run as they are, and are then recorded."""
        self._steps = 0
        self._replays.clear()
        self.recorder.reset()

    def run(self, micro: int, batch: MicroBatch, work: Work) -> None:
        """Run a micro-step.

        Args:
            micro: its index in the step.
            batch: its micro-batch.
            work: runs the micro-step. It is not called where a recording is replayed.

        Raises:
            TrainingStopped: the micro-step cannot be recorded, or the micro-batch has another form than those before.
        """
        static = self._batch(batch)
        if self._steps <= self.warm_up:
            with self.recorder.stream():
                work(static)
            return
        with annotate("graph", micro):
            if micro not in self._replays:
                self._replays[micro] = self._record(lambda: work(static))
            self._replays[micro]()

    def rates(self, lr: float, scales: Sequence[float]) -> list[Tensor]:
        """Return the learning rates of parameter groups as tensors that stay, float32.

        Args:
            lr: the learning rate of this step.
            scales: for each group, the factor of its learning rate.
        """
        for scale in dict.fromkeys(scales):
            if scale not in self._rates:
                self._rates[scale] = torch.empty((), device=self.device)
            self._rates[scale].fill_(lr * scale)
        return [self._rates[scale] for scale in scales]

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        # Adam refuses to be recorded without this mark. The states of its fused kernels are on the device anyway.
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        before = [group["capturable"] for group in groups]
        for group in groups:
            group["capturable"] = True
        try:
            return self.recorder.record(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise TrainingStopped(
                f"train.cuda_graph: the step cannot be recorded ({reason}); set it to false"
            ) from error
        finally:
            for group, value in zip(groups, before, strict=True):
                group["capturable"] = value


def open_recorder(config: RunConfig, world: World) -> CudaRecorder | None:
    """Open the recorder of a run with `train.cuda_graph`; None without.

    Args:
        config: the configuration of the run.
        world: the ranks.

    Raises:
        UserError: the device or the exchange of gradients cannot be recorded.
    """
    if not config.train.cuda_graph:
        return None
    if world.device.type != "cuda":
        raise UserError("train.cuda_graph: needs a GPU, and this run trains on the CPU; set it to false")
    for key, value, default in (
        ("gradients", config.distributed.gradients, "fp32"),
        ("parallel", config.distributed.parallel, "ddp"),
    ):
        if world.size > 1 and value != default:
            raise UserError(
                f"train.cuda_graph: is not known to be possible with distributed.{key} {value} on several ranks; set it"
                f" to {default}, or train.cuda_graph=false"
            )
    return CudaRecorder(world.device)


def build_step_graphs(
    recorder: Recorder,
    config: RunConfig,
    world: World,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> StepGraphs:
    """Build the graphs of a training's steps.

    Args:
        recorder: of the device.
        config: the configuration of the run.
        world: the ranks.
        model: the network, with the layers that its ranks need.
        optimizer: of the training.

    Raises:
        UserError: network or optimizer wait for the device in a step, which cannot be recorded.
    """
    problems = []
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        problems.append(
            f"train.cuda_graph: the optimizer {config.optim.name} waits for the device; set optim.name to adamw, adam"
            " or sgd, or train.cuda_graph=false"
        )
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        problems.append(
            "train.cuda_graph: batch norm over several ranks waits for the device; choose a network with instance norm,"
            " or set train.cuda_graph=false"
        )
    if config.train.checkpoint_activations and any(getattr(module, "is_random", False) for module in model.modules()):
        problems.append(
            "train.cuda_graph: recomputed activations with random numbers cannot be recorded; set"
            " train.checkpoint_activations=false, model.drop_path_rate=0, or train.cuda_graph=false"
        )
    if getattr(model, "find_unused_parameters", False):
        problems.append(
            "train.cuda_graph: with a network of your own on several ranks it needs one micro-batch for each step;"
            " raise train.micro_batch, or set train.cuda_graph=false"
        )
    if problems:
        raise UserError(problems)
    return StepGraphs(recorder, optimizer, world.device, warm_up=_WARM_UP if world.size == 1 else _WARM_UP_DDP)


def _form(leaf: Any) -> Any:
    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _text(form: Any) -> str:
    """Describe the form of a micro-batch: types and shapes of its tensors."""
    parts = [
        f"{str(each[2]).removeprefix('torch.')} {tuple(each[0])}" if isinstance(each, tuple) else repr(each)
        for each in form[2]
    ]
    return ", ".join(parts)
