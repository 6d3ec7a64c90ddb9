"""The `finetune` section: a network learns from the weights of a trained encoder."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.section import Positive, SectionWithOptions


class FinetuneConfig(SectionWithOptions):
    """Fine-tuning of a trained encoder (`init_from`), for networks whose encoder is one part: Swin UNETR and UNETR, the
    residual-encoder U-Net, the U-Net family and `segresnet_ds`."""

    left_out: ClassVar[tuple[str, ...]] = ("restart_schedule", "from_scratch")

    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from layer to layer of the encoder (Clark et al., 2020; Bao et al., 2022): layer l of
    L has lr * layer_decay^(L - l). In a transformer, layer 0 is the patch embedding, and each block is a layer. In a
    U-Net each level is a layer; a stem before the first level is layer 0. The rest of the network has lr."""
    freeze: Literal["none", "encoder"] = "none"
    """Frozen part of the network: neither gradient nor weight decay changes it."""
    freeze_steps: Positive | None = None
    """Number of first steps in which the part is frozen; the learning-rate schedule continues meanwhile. Null freezes
    it for the whole run, and the backward pass then ends before the encoder."""
    restart_schedule: bool = False
    """The learning-rate schedule runs twice: over the `freeze_steps`, with a warm-up of half of them, and again over
    the rest of the run, with its own warm-up ("sawtooth" of Wald et al., 2024, arXiv:2412.17041)."""
    from_scratch: bool = False
    """Control experiment: the network keeps its initial weights. `init_from` is not read, and `freeze` and
    `layer_decay`, which are for trained weights, have no effect. Steps, samples and schedule stay the same."""

    @model_validator(mode="after")
    def _something_to_freeze(self) -> FinetuneConfig:
        if self.freeze == "none" and self.freeze_steps is not None:
            raise ValueError("freeze_steps: nothing is frozen; remove it, or set freeze: encoder")
        if self.whole_run and self.layer_decay != 1:
            raise ValueError("layer_decay: the encoder is frozen for the whole run; remove it, or set freeze_steps")
        if self.restart_schedule and self.freeze_steps is None:
            raise ValueError(
                "restart_schedule: the schedule restarts when the encoder begins to learn (expected freeze: encoder and"
                " freeze_steps); set them, or remove restart_schedule"
            )
        return self

    @property
    def whole_run(self) -> bool:
        """True if `freeze` is for the whole run."""
        return self.freeze == "encoder" and self.freeze_steps is None

    @property
    def restart(self) -> int:
        """The step at which the learning-rate schedule begins again; 0 if it runs once."""
        return self.freeze_steps or 0 if self.restart_schedule else 0

    def problems(self, model: NetworkSection, init_from: str | None, steps: int, others: str) -> list[str]:
        """List the settings that a network or a run does not allow, with the fixes.

        Args:
            model: section of the network.
            init_from: `init_from` of the run.
            steps: number of steps of the run.
            others: names of networks with an encoder, for the message.
        """
        if model.encoder is None and (self.layer_decay != 1 or self.freeze != "none"):
            return [
                f"finetune: {model.name} has no encoder of its own ({others} have one); remove it, or choose another"
                " model.name"
            ]
        problems = []
        if self.freeze != "none" and init_from is None and not self.from_scratch:
            problems.append(
                "finetune.freeze: without init_from the encoder would keep its random weights; set init_from, or"
                " freeze: none"
            )
        if self.freeze != "none" and not self.from_scratch and getattr(model, "norm", None) == "batch":
            problems.append(
                "finetune.freeze: batch norm changes its statistics in a frozen encoder too (expected another"
                " model.norm); set it to instance here and in the run of init_from, or set freeze: none"
            )
        if self.freeze_steps is not None and self.freeze_steps >= steps:
            problems.append(
                f"finetune.freeze_steps: expected fewer than train.steps {steps}, got {self.freeze_steps}; lower it, or"
                " set it to null for the whole run"
            )
        return problems
