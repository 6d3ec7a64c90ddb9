"""Common training recipes for comparison, with the cases, network, patch, batch and precision of a configuration.

    python profiling/benchmark_recipes.py monai_fast --config configs/hippocampus_unet.yaml data.root=DATA --steps 100
    python profiling/benchmark_recipes.py monai_fast --config ... data.root=DATA --until-dice 0.83 --every-s 20

- *thesis*: a plain PyTorch loop over a CacheDataset and a DataLoader with worker processes, without the speed-ups that
  the thesis describes.
- *monai_fast*: MONAI's fast-training tutorial: cache and transforms on the device, ThreadDataLoader, no metadata,
  Novograd (AdamW for Swin networks), mixed precision.
- *monai_fast_best*: the same with what speeds it up on a GPU: channels-last maps and a compiled network.
- *monai_trainer*: MONAI's SupervisedTrainer.
- *fabric*: Lightning Fabric with MONAI's cache.

All of them use the augmentation of the tutorial: two patches of a volume, three flips, an intensity shift.
profiling/benchmark.py imports this module. Run as a program it trains one recipe.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from benchmark_setting import (
    KEYS,
    Setting,
    cached_on_device,
    fixed_transforms,
    open_setting,
    plain_network,
    random_transforms,
    tracking,
)
from torch import Tensor

from fusionseg.config import load_config
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.utils.exit_status import run


class PlainRecipe:
    """A minimal training loop over a loader of dictionaries; the recipes override what differs."""

    tracks_metadata = False
    """Value of MONAI's global switch for metadata during the training. All recipes of a process share it; worker
    processes keep the value that it had when they were started."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = plain_network(setting)
        self.loss = self._loss()
        self.optimizer = self._optimizer(setting.config.optim.lr)
        self.scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision.scales_loss)
        with tracking(True):  # the transforms of the loading need the metadata
            self._validation = self._validation_cases()
            self._batches: Iterator[dict[str, Tensor]] = itertools.chain.from_iterable(itertools.repeat(self._loader()))

    def train(self, steps: int) -> None:
        """Run optimizer steps including their data."""
        for _ in range(steps):
            self.step(*self.batch())

    def batch(self) -> tuple[Tensor, Tensor]:
        """Samples of the next step on the device: image and label, (B, 1, X, Y, Z) each."""
        batch = next(self._batches)
        device = self.setting.device
        return batch["image"].to(device, non_blocking=True), batch["label"].to(device, non_blocking=True)

    def step(self, image: Tensor, label: Tensor) -> None:
        """Run one optimizer step.

        Args:
            image: (B, 1, X, Y, Z).
            label: class of each voxel, (B, 1, X, Y, Z).
        """
        self.optimizer.zero_grad()
        with self.setting.precision.autocast():
            loss = self.loss(self.model(image), label)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def validate(self) -> float:
        """Mean foreground Dice of the validation cases."""
        from monai.inferers import sliding_window_inference
        from monai.metrics import DiceMetric
        from monai.networks.utils import one_hot

        setting = self.setting
        metric = DiceMetric(include_background=False, reduction="mean_batch")
        self.model.eval()
        settings = setting.config.validation
        with torch.no_grad(), setting.precision.autocast():
            for case in self._validation:
                logits = sliding_window_inference(
                    case["image"][None], setting.config.data.patch, settings.window_batch, self.model,
                    overlap=settings.overlap, mode=settings.blend,
                )  # fmt: skip
                assert isinstance(logits, Tensor)
                predicted = one_hot(logits.argmax(1, keepdim=True), setting.num_classes)
                metric(predicted, one_hot(case["label"][None], setting.num_classes))
        self.model.train()
        return float(metric.aggregate().mean())

    def _validation_cases(self) -> Any:
        from monai.data import CacheDataset
        from monai.transforms import Compose, EnsureTyped

        chain = Compose(
            [*fixed_transforms(self.setting), EnsureTyped(KEYS, device=self.setting.device, track_meta=False)]
        )
        return CacheDataset(self.setting.validation_files, chain, copy_cache=False, progress=False, num_workers=2)

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        from monai.losses import DiceCELoss

        return DiceCELoss(to_onehot_y=True, softmax=True)

    def _optimizer(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr)

    def _loader(self) -> Any:
        return cached_on_device(self.setting)


class Thesis(PlainRecipe):
    """Recipe `thesis` of the module's docstring."""

    tracks_metadata = True

    def _loader(self) -> Any:
        from monai.data import CacheDataset, DataLoader
        from monai.transforms import Compose

        chain = Compose([*fixed_transforms(self.setting), *random_transforms(self.setting, indexed=False)])
        cached = CacheDataset(self.setting.train_files, chain, progress=False)
        return DataLoader(cached, batch_size=self.setting.volumes, shuffle=True, num_workers=2, persistent_workers=True)


class MonaiFast(PlainRecipe):
    """Recipe `monai_fast` of the module's docstring."""

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        from monai.losses import DiceCELoss

        return DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)

    def _optimizer(self, lr: float) -> torch.optim.Optimizer:
        from monai.optimizers import Novograd

        if isinstance(self.setting.config.model, SwinConfig):
            return super()._optimizer(lr)
        return Novograd(self.model.parameters(), 1e-2)


class MonaiFastBest(MonaiFast):
    """Recipe `monai_fast_best` of the module's docstring."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.model.compile()

    def batch(self) -> tuple[Tensor, Tensor]:
        image, label = super().batch()
        return image.contiguous(memory_format=torch.channels_last_3d), label


class Fabric(PlainRecipe):
    """Recipe `fabric` of the module's docstring."""

    def __init__(self, setting: Setting) -> None:
        from lightning_fabric import Fabric as Library

        names: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
        self.fabric = Library(accelerator=setting.device.type, devices=1, precision=names[setting.precision.name])
        super().__init__(setting)
        self.model, self.optimizer = self.fabric.setup(self.model, self.optimizer)

    def step(self, image: Tensor, label: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.loss(self.model(image), label)
        self.fabric.backward(loss)
        self.optimizer.step()

    def _loader(self) -> Any:
        return self.fabric.setup_dataloaders(super()._loader())


class MonaiTrainer(PlainRecipe):
    """Recipe `monai_trainer` of the module's docstring."""

    def __init__(self, setting: Setting) -> None:
        from monai.engines import SupervisedTrainer

        super().__init__(setting)
        self.trainer = SupervisedTrainer(
            device=setting.device,
            max_epochs=1,
            train_data_loader=self._batches,
            epoch_length=1,
            network=self.model,
            optimizer=self.optimizer,
            loss_function=self.loss,
            amp=setting.precision.name != "fp32",
            amp_kwargs={"dtype": setting.precision.dtype} if setting.precision.name != "fp32" else {},
        )

    def train(self, steps: int) -> None:
        state = self.trainer.state
        state.epoch_length, state.epoch, state.iteration, state.max_epochs = steps, 0, 0, 1
        self.trainer.run()


RECIPES: dict[str, type[PlainRecipe]] = {
    "thesis": Thesis,
    "monai_fast": MonaiFast,
    "monai_fast_best": MonaiFastBest,
    "monai_trainer": MonaiTrainer,
    "fabric": Fabric,
}


def main() -> int:
    """Train one recipe, and return the exit status. It prints JSON lines; the last line has the totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--steps", type=int, default=1_000_000, help="most optimizer steps")
    parser.add_argument("--cases", type=int, help="most training cases (default: all)")
    parser.add_argument("--until-dice", type=float, help="validate, and stop at this mean Dice")
    parser.add_argument("--every-s", type=float, default=20.0, help="seconds of training between validations")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args()

    def work() -> int:
        from monai.data import set_track_meta

        warnings.filterwarnings("ignore", module="(monai|lightning|torch|ignite).*")
        begun = time.time()
        setting = open_setting(load_config(arguments.config, arguments.overrides), arguments.cases)
        recipe = RECIPES[arguments.recipe](setting)
        prepared_s = time.time() - begun
        set_track_meta(recipe.tracks_metadata)
        recipe.train(1)
        print(json.dumps({"first_step": time.time()}), flush=True)
        steps, trained_s, dice, due = 1, 0.0, None, arguments.every_s
        while steps < arguments.steps:
            start = time.perf_counter()
            recipe.train(1)
            steps += 1
            trained_s += time.perf_counter() - start
            if arguments.until_dice is not None and trained_s >= due:
                due += arguments.every_s
                dice = recipe.validate()
                print(json.dumps({"trained_s": trained_s, "step": steps, "dice": dice}), flush=True)
                if dice >= arguments.until_dice:
                    break
        total_s = time.time() - begun
        print(
            json.dumps(
                {"prepared_s": prepared_s, "trained_s": trained_s, "steps": steps, "dice": dice, "total_s": total_s}
            )
        )
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
