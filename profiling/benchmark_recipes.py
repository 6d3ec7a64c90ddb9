"""The recipes that people train by: on the same cases, network, patch, batch and precision as a configuration of ours.

    python profiling/benchmark_recipes.py monai_fast --config configs/hippocampus_unet.yaml data.root=DATA --steps 100
    python profiling/benchmark_recipes.py monai_fast --config ... data.root=DATA --until-dice 0.83 --every-s 20

*thesis*: a plain PyTorch loop over a CacheDataset and a DataLoader with worker processes, as before its speed-ups.
*monai_fast*: MONAI's fast-training tutorial: the cache and the transforms on the device, ThreadDataLoader, no metadata,
Novograd (AdamW for Swin), mixed precision. *monai_trainer*: MONAI's SupervisedTrainer. *fabric*: Lightning Fabric with
MONAI's cache. Each draws the tutorial's samples: two patches of a volume, three flips, an intensity shift.

profiling/benchmark.py imports this; run by itself it is one recipe in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusionseg.config import MonaiUNetConfig, RunConfig, SwinConfig, load_config
from fusionseg.engine.distributed import choose_device
from fusionseg.engine.launch import read_launch
from fusionseg.engine.precision import Precision, choose_precision
from fusionseg.engine.sources import open_sources
from fusionseg.entry import run
from fusionseg.errors import UserError
from fusionseg.machine import available_cpus

KEYS = ("image", "label")


@dataclass(frozen=True)
class Setting:
    """What all recipes share."""

    config: RunConfig
    device: torch.device
    precision: Precision
    train_files: list[dict[str, str]]
    validation_files: list[dict[str, str]]
    num_classes: int

    @property
    def volumes(self) -> int:
        """Of a step."""
        return max(1, self.config.train.global_batch // self.config.data.samples_per_volume)

    @property
    def samples(self) -> int:
        """Of a step."""
        return self.volumes * self.config.data.samples_per_volume


def open_setting(config: RunConfig, cases: int | None = None) -> Setting:
    """The cases of a configuration's fold as files, its device and precision.

    Args:
        cases: at most so many to train on, and a quarter of that to validate on.
    """
    (source,) = open_sources(config)
    device = choose_device(config.device, torch.cuda.device_count(), read_launch({}))
    torch.set_num_threads(config.train.threads or available_cpus())
    listed = [
        [{"image": str(case.images[0]), "label": str(case.label)} for case in part[:count]]
        for part, count in ((source.train, cases), (source.validation, cases and max(1, cases // 4)))
    ]
    precision = choose_precision(config.train.precision, device)
    return Setting(config, device, precision, listed[0], listed[1], source.dataset.num_classes)


def plain_network(setting: Setting) -> nn.Module:
    """MONAI's network of the configured kind and size."""
    from monai.networks.nets import SwinUNETR, UNet

    torch.manual_seed(setting.config.seed)
    model = setting.config.model
    if isinstance(model, MonaiUNetConfig):
        strides = model.strides or (2,) * (len(model.channels) - 1)
        return UNet(
            3, 1, setting.num_classes, model.channels, strides, num_res_units=model.num_res_units, norm=model.norm
        ).to(setting.device)
    if isinstance(model, SwinConfig) and model.name == "swin_unetr":
        return SwinUNETR(1, setting.num_classes, feature_size=model.feature_size, window_size=model.window_size).to(
            setting.device
        )
    raise UserError(f"model.name: the recipes know monai_unet and swin_unetr, and this is {model.name}")


def fixed_transforms(setting: Setting) -> list[Any]:
    """From files to normalised volumes, as the configuration says."""
    from monai import transforms

    data = setting.config.data
    steps: list[Any] = [transforms.LoadImaged(keys=KEYS), transforms.EnsureChannelFirstd(keys=KEYS)]
    if data.orientation:
        steps.append(transforms.Orientationd(keys=KEYS, axcodes=data.orientation, labels=None))
    if data.spacing:
        steps.append(transforms.Spacingd(keys=KEYS, pixdim=data.spacing, mode=("bilinear", "nearest")))
    if data.intensity.clip is not None and data.intensity.mode == "window":
        low, high = data.intensity.clip
        steps.append(transforms.ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True))
    else:
        steps.append(transforms.NormalizeIntensityd(keys="image"))
    return [*steps, transforms.SpatialPadd(keys=KEYS, spatial_size=data.patch)]


def random_transforms(setting: Setting, *, indexed: bool) -> list[Any]:
    """The tutorial's samples: patches half of which are centred on foreground, flips, an intensity shift.

    Args:
        indexed: the foreground's voxels have been listed beforehand.
    """
    from monai import transforms

    listed = {"fg_indices_key": "label_fg", "bg_indices_key": "label_bg"} if indexed else {}
    return [
        transforms.RandCropByPosNegLabeld(
            keys=KEYS, label_key="label", spatial_size=setting.config.data.patch, pos=1, neg=1,
            num_samples=setting.config.data.samples_per_volume, **listed,
        ),
        *(transforms.RandFlipd(keys=KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)),
        transforms.RandShiftIntensityd(keys="image", offsets=0.1, prob=0.5),
    ]  # fmt: skip


class PlainRecipe:
    """A loop written by hand over a loader of dictionaries; the recipes say what is different."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = plain_network(setting)
        self.loss = self._loss()
        self.optimizer = self._optimizer(setting.config.optim.lr)
        self.scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision.scales_loss)
        self._validation: Any = None
        self._batches = self._forever(self._loader())

    def train(self, steps: int) -> None:
        """Optimizer steps, data included."""
        with self._settings():
            for _ in range(steps):
                self.step(*self.batch())

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next step's samples on the device: image and label (B, 1, X, Y, Z)."""
        batch = next(self._batches)
        device = self.setting.device
        return batch["image"].to(device, non_blocking=True), batch["label"].to(device, non_blocking=True)

    def draw(self) -> tuple[Tensor, Tensor]:
        """`batch`, as while it trains."""
        with self._settings():
            return self.batch()

    def step(self, image: Tensor, label: Tensor) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        with self.setting.precision.autocast():
            loss = self.loss(self.model(image), label)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def validate(self) -> float:
        """Mean foreground Dice of the validation cases."""
        from monai.data import CacheDataset
        from monai.inferers import sliding_window_inference
        from monai.metrics import DiceMetric
        from monai.networks.utils import one_hot
        from monai.transforms import Compose, EnsureTyped

        setting = self.setting
        if self._validation is None:
            chain = Compose([*fixed_transforms(setting), EnsureTyped(KEYS, device=setting.device, track_meta=False)])
            self._validation = CacheDataset(setting.validation_files, chain, copy_cache=False, progress=False)
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
                shown = one_hot(logits.argmax(1, keepdim=True), setting.num_classes)
                metric(shown, one_hot(case["label"][None], setting.num_classes))
        self.model.train()
        return float(metric.aggregate().mean())

    def _settings(self) -> Any:
        """What is set globally while it trains."""
        return _tracking(True)

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        from monai.losses import DiceCELoss

        return DiceCELoss(to_onehot_y=True, softmax=True)

    def _optimizer(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr)

    def _loader(self) -> Any:
        raise NotImplementedError

    def _forever(self, loader: Any) -> Iterator[dict[str, Tensor]]:
        return itertools.chain.from_iterable(itertools.repeat(loader))


class Thesis(PlainRecipe):
    """See the top of the file."""

    def _loader(self) -> Any:
        from monai.data import CacheDataset, DataLoader
        from monai.transforms import Compose

        chain = Compose([*fixed_transforms(self.setting), *random_transforms(self.setting, indexed=False)])
        cached = CacheDataset(self.setting.train_files, chain, progress=False)
        return DataLoader(cached, batch_size=self.setting.volumes, shuffle=True, num_workers=2, persistent_workers=True)


class MonaiFast(PlainRecipe):
    """See the top of the file."""

    def _settings(self) -> Any:
        return _tracking(False)

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        from monai.losses import DiceCELoss

        return DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)

    def _optimizer(self, lr: float) -> torch.optim.Optimizer:
        from monai.optimizers import Novograd

        if isinstance(self.setting.config.model, SwinConfig):
            return super()._optimizer(lr)
        return Novograd(self.model.parameters(), 1e-2)

    def _loader(self) -> Any:
        return _cached_on_device(self.setting)


class Fabric(PlainRecipe):
    """See the top of the file."""

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
        return self.fabric.setup_dataloaders(_cached_on_device(self.setting))

    def _settings(self) -> Any:
        return _tracking(False)


class MonaiTrainer(PlainRecipe):
    """See the top of the file."""

    def __init__(self, setting: Setting) -> None:
        from monai.engines import SupervisedTrainer

        super().__init__(setting)
        self._steps = 0
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
        with self._settings():
            self.trainer.state.epoch_length = steps
            self.trainer.state.epoch = 0
            self.trainer.state.iteration = 0
            self.trainer.state.max_epochs = 1
            self.trainer.run()

    def _loader(self) -> Any:
        return _cached_on_device(self.setting)

    def _settings(self) -> Any:
        return _tracking(False)


RECIPES: dict[str, type[PlainRecipe]] = {
    "thesis": Thesis,
    "monai_fast": MonaiFast,
    "monai_trainer": MonaiTrainer,
    "fabric": Fabric,
}


def _cached_on_device(setting: Setting) -> Any:
    """The tutorial's data: cached up to the random transforms, on the device, by threads."""
    from monai.data import CacheDataset, ThreadDataLoader
    from monai.transforms import Compose, EnsureTyped, FgBgToIndicesd

    chain = Compose(
        [
            *fixed_transforms(setting),
            FgBgToIndicesd(keys="label", fg_postfix="_fg", bg_postfix="_bg"),
            EnsureTyped(keys=KEYS, device=setting.device, track_meta=False),
            *random_transforms(setting, indexed=True),
        ]
    )
    with _tracking(True):  # loading needs the metadata
        cached = CacheDataset(setting.train_files, chain, copy_cache=False, progress=False, num_workers=2)
    return ThreadDataLoader(cached, batch_size=setting.volumes, shuffle=True, num_workers=0)


class _tracking:
    """MONAI's global switch, for a while."""

    def __init__(self, tracked: bool) -> None:
        self.tracked = tracked

    def __enter__(self) -> None:
        from monai.data import get_track_meta, set_track_meta

        self.before = get_track_meta()
        set_track_meta(self.tracked)

    def __exit__(self, *error: object) -> None:
        from monai.data import set_track_meta

        set_track_meta(self.before)


def main() -> int:
    """Run one recipe; prints JSON lines, the last one the sum of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, help="train on so many at most")
    parser.add_argument("--until-dice", type=float, help="validate, and stop at this mean Dice")
    parser.add_argument("--every-s", type=float, default=20.0, help="seconds of training between validations")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args()

    def work() -> int:
        warnings.filterwarnings("ignore", module="(monai|lightning|torch|ignite).*")
        begun = time.time()
        setting = open_setting(load_config(arguments.config, arguments.overrides), arguments.cases)
        recipe = RECIPES[arguments.recipe](setting)
        prepared_s = time.time() - begun
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
