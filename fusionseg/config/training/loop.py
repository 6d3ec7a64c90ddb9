"""Section about the training loop: `train`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fusionseg.config.section import Positive, SectionWithOptions
from fusionseg.config.training.spikes import SpikeConfig
from fusionseg.utils.errors import UserError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


def _mode_of_true(value: Any) -> Any:
    """Replace true, which files may have for the default mode."""
    return "default" if value is True else value


class TrainConfig(SectionWithOptions):
    """The training loop."""

    left_out: ClassVar[tuple[str, ...]] = (
        "cuda_graph",
        "cudnn_benchmark",
        "tf32",
        "deterministic",
        "ema",
        "ema_warmup",
        "spikes",
        "micro_batch_found",
    )

    steps: Positive = 50000
    """Optimizer steps."""
    global_batch: Positive = 2
    """Samples per optimizer step over all ranks. The number of accumulation steps follows from it."""
    micro_batch: Positive | Literal["auto"] = 1
    """Samples of one forward pass on each rank. `auto`: each start takes the largest number that divides its samples
    and fits into the memory of every rank, and writes it into the run's config.yaml. Not with batch norm,
    `loss.batch_dice` or `cache.placement: sharded`, whose results depend on it."""
    micro_batch_found: Positive | None = None
    """Written by a run with `micro_batch: auto`: the number that it has found. While `micro_batch` is this number, a
    start chooses as `auto` does. It tries this number first."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the device computes in it, else fp16 with a loss scaler (GPU) or fp32 (CPU)."""
    compile: Annotated[bool | CompileMode, BeforeValidator(_mode_of_true)] = False
    """Compile the network with torch.compile in one of its modes. `default` joins small operators. `reduce-overhead`
    also records them as CUDA graphs. `max-autotune` also measures which kernels are fastest, and takes minutes. `true`
    is `default`. A compiled network rounds differently from one that is not compiled, and so does each mode."""
    cuda_graph: bool = False
    """Record the forward pass, the backward pass and the update as CUDA graphs, and replay them: for a GPU that waits
    for the host. The first steps run as they are (3, on several ranks 11). Replayed steps have no ranges `forward`,
    `loss`, `backward` and `optimizer`. The graphs keep the memory of a step, which a validation cannot use."""
    cudnn_benchmark: bool = False
    """Let cuDNN measure its convolutions on first use and take the fastest. The choice may differ from start to start,
    and with it the rounding: two runs with the same seed are then no longer equal to the last bit."""
    tf32: Literal["none", "convolutions", "all"] = "convolutions"
    """Operations that a GPU from compute capability 8.0 on computes in TF32 where they would be in fp32: 10 bits for
    the fraction in place of 23. `convolutions` is torch's default; `all` adds matrix products. Each choice gives the
    same numbers in every start, but not those of the other choices."""
    deterministic: bool = False
    """Let torch take deterministic algorithms alone: two starts on the same GPU and software then give the same bits.
    A network or a loss without such an algorithm on a GPU is refused. Steps take longer; how much was not measured."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, more time (Swin networks, residual-encoder U-Nets)."""
    channels_last: bool | Literal["auto"] = False
    """Keep tensors in channels-last layout. Convolutions are often faster in this layout. `auto`: on a CPU; on a GPU
    only if the norms of the network keep the layout (batch norm, and the blocks of Swin networks). Instance norm and
    group norm convert every map there. The choice is logged."""
    clip_grad: Annotated[float, Field(gt=0)] | None = 1.0
    """Highest norm of the gradient; null does not clip."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; null keeps none. Validations are those of
    the averaged weights. best.pt has them, and predictions, evaluations and exports use them. They take the memory of
    the weights once more. Running statistics of batch norm are averaged too; other buffers are those of the network."""
    ema_warmup: bool = True
    """Begin the average with a lower decay: that of step s, from 0, is at most (1 + s) / (10 + s). Without it the
    average is close to the initial weights for the first 1 / (1 - ema) steps."""
    max_skipped: Positive = 10
    """Number of consecutive steps with a non-finite loss or gradient that ends the run."""
    spikes: SpikeConfig = SpikeConfig()
    threads: Positive | None = None
    """CPU threads of each process; null divides this job's CPUs among its processes on the node."""

    @property
    def chooses_micro_batch(self) -> bool:
        """Whether a start chooses `micro_batch`: it is `auto`, or a number that a run with `auto` has found."""
        return self.micro_batch in ("auto", self.micro_batch_found)

    @property
    def micro_batch_samples(self) -> int:
        """The number of `micro_batch`.

        Raises:
            UserError: it is `auto`, and no start has found a number yet.
        """
        if self.micro_batch == "auto":
            raise UserError("train.micro_batch: is auto, and a number is needed here; set train.micro_batch to one")
        return self.micro_batch

    def with_micro_batch(self, samples: int) -> TrainConfig:
        """This section with the number that a start has found for `micro_batch: auto`.

        Args:
            samples: the number.
        """
        return self.model_copy(update={"micro_batch": samples, "micro_batch_found": samples})

    def determinism_problems(self) -> list[str]:
        """List the settings that do not fit `deterministic`, with the fixes."""
        if not (self.deterministic and self.cudnn_benchmark):
            return []
        return [
            "train.deterministic: train.cudnn_benchmark takes the fastest kernels, which may be others in each start;"
            " set one of them to false"
        ]

    def graph_problems(self, *, stages: bool) -> list[str]:
        """List the settings that do not fit `cuda_graph`, with the fixes.

        Args:
            stages: `profile.stages`.
        """
        problems = []
        if self.cuda_graph and self.compile not in (False, "default"):
            problems.append(
                f"train.cuda_graph: train.compile {self.compile} makes CUDA graphs itself; set train.compile to"
                " default, or train.cuda_graph=false"
            )
        if self.cuda_graph and stages:
            problems.append(
                "profile.stages: the parts of a recorded network have no ranges of their own; set"
                " train.cuda_graph=false, or profile.stages=false"
            )
        return problems
