"""The memory of a plan is that of its training, few networks are measured for it, and validations cost little."""

from __future__ import annotations

from math import prod

import pytest
from fingerprints import case, fingerprint

from fusionseg.config import DataConfig, validate
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.planning.choices import plain_values
from fusionseg.planning.cost import USABLE, CostModel
from fusionseg.planning.device import GB, PlannedDevice
from fusionseg.planning.fit import Fitted, PatchSearch
from fusionseg.planning.network import PlannedNetwork, network_for
from fusionseg.planning.patch import patch_reason, plan_division, plan_patch
from fusionseg.planning.recipe import TrainingSize, optimizer_for, plan_training
from fusionseg.planning.volumes import plan_volumes
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task

ISOTROPIC = (1.0, 1.0, 1.0)


@pytest.fixture
def scheme() -> LabelScheme:
    return LabelScheme.of_names(("background", "organ"))


def cost_model(scheme: LabelScheme, memory_gb: float, ranks: int = 1) -> CostModel:
    device = PlannedDevice(memory_gb, 1, Precision("bf16", "", "cuda"), "a GPU", is_elsewhere=True, ranks=ranks)
    return CostModel(device, scheme, 1, lambda name: optimizer_for(name, is_gpu=True))


def test_accumulated_gradients_are_in_the_memory_of_a_plan(scheme: LabelScheme) -> None:
    """One sample at a time is accumulated to two: the gradients of the first one are there while the second runs."""
    network, cost = network_for("unet", ISOTROPIC, (32, 32, 32), 32), cost_model(scheme, 8.0)

    def counted(global_batch: int) -> int:
        config = validate(
            {
                "data": {"patch": [32, 32, 32]},
                "model": network.values,
                "optim": optimizer_for("unet", is_gpu=True),
                "train": {"global_batch": global_batch, "micro_batch": 1},
            }
        )
        return estimate_memory(build_task(config, scheme), config, 1, 2, precision=cost.device.precision).total

    assert cost.memory(network, 1).total == counted(2) > counted(1)


def test_a_patch_of_one_sample_is_found_by_few_measurements(scheme: LabelScheme) -> None:
    """A patch of two samples that fits is below a quarter of the volume, and is not measured."""
    measured = []

    def load(network: PlannedNetwork, micro_batch: int) -> float:
        measured.append((network.patch, micro_batch))
        return 0.05 + micro_batch * prod(network.patch) / (160 * 160 * 112)

    search = PatchSearch((240, 240, 155), ISOTROPIC, lambda patch: network_for("unet", ISOTROPIC, patch, 16), load)
    assert search.largest(2, 240 * 240 * 155 / 4) is None
    fitted = search.largest(1)
    assert fitted is not None and fitted.load <= 1 and not fitted.is_largest
    assert [micro_batch for _, micro_batch in measured] == [2, 1, 1]


def test_a_search_that_starts_with_little_of_a_volume_keeps_two_samples(scheme: LabelScheme) -> None:
    """256^3 voxels are the largest patch, so that one sample at a time would not see more of a larger volume."""
    volumes = plan_volumes(fingerprint([case("a", (640, 640, 400))]), DataConfig())
    cost = cost_model(scheme, 1000.0)
    fitted = plan_patch("unet", volumes, cost, 1, DataConfig())
    assert fitted.is_largest and fitted.micro_batch == 2
    assert "the patch covers 10% of it" in patch_reason(fitted, volumes, cost, DataConfig())


def test_a_network_that_does_not_fit_is_divided_among_the_gpus(scheme: LabelScheme) -> None:
    """The division is the last resort: a GPU that holds the whole network keeps it."""
    volumes = plan_volumes(fingerprint([case("a", (64, 64, 48))]), DataConfig())
    given = DataConfig(patch=(32, 32, 32))
    network = network_for("unet", ISOTROPIC, (32, 32, 32), 32)
    whole = cost_model(scheme, 8.0, ranks=4)
    assert whole.divided().memory(network, 1).total < whole.memory(network, 1).total
    cost, fitted = plan_division("unet", volumes, whole, 100, given)
    assert cost.parallel == "ddp" and fitted.micro_batch == 1, "four samples are more than nnU-Net's smallest batch"

    between = (whole.divided().memory(network, 1).total + whole.memory(network, 1).total) / 2 / USABLE / GB
    cost, fitted = plan_division("unet", volumes, cost_model(scheme, between, ranks=4), 100, given)
    assert cost.parallel == "fsdp" and fitted.load <= 1
    cost, fitted = plan_division("unet", volumes, cost_model(scheme, between), 100, given)
    assert cost.parallel == "ddp" and fitted.load > 1, "a single GPU has nothing to divide"


@pytest.mark.parametrize(("cases", "every"), [(1, 250), (8, 250), (40, 1000), (2000, 43_500)])
def test_validations_on_a_gpu_take_a_twentieth_of_the_time(cases: int, every: int, scheme: LabelScheme) -> None:
    """A volume of one window costs a third of a sample's step, and a step for the rest."""
    volumes = plan_volumes(fingerprint([case("a", (32, 32, 32))]), DataConfig())
    fitted = Fitted(network_for("unet", ISOTROPIC, (32, 32, 32), 32), 0.5, 4, True)
    choices = plan_training(cost_model(scheme, 8.0), fitted, volumes, TrainingSize(4 * cases, cases, 4))
    (choice,) = (choice for choice in choices if choice.key == "validate.every")
    assert choice.value == every
    assert "of the time. The interval is a multiple of nnU-Net's epoch of 250 steps." in choice.reason
    assert plain_values(choices)["checkpoint"]["every"] == 1000
