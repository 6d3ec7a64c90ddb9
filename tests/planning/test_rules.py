"""The rules of a plan against numbers that nnU-Net has published, and against data sets that need each rule."""

from __future__ import annotations

from math import prod

import pytest
from fingerprints import case, fingerprint, intensities

from fusionseg.config import DataConfig
from fusionseg.config.registry import networks
from fusionseg.planning.choices import Choice, commented_yaml, plain_values
from fusionseg.planning.cost import windows
from fusionseg.planning.fit import PatchSearch, largest_micro_batch
from fusionseg.planning.levels import network_levels
from fusionseg.planning.modality import plan_intensity
from fusionseg.planning.network import PlannedNetwork, network_for
from fusionseg.planning.volumes import plan_volumes
from fusionseg.utils.errors import UserError

Triple = tuple[int, int, int]
ISOTROPIC = (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("spacing", "patch", "strides", "kernels"),
    [
        (ISOTROPIC, (40, 56, 40), [2, 2, 2], [3, 3, 3, 3]),  # Task04 hippocampus
        (ISOTROPIC, (128, 128, 128), [2] * 5, [3] * 6),  # Task01 brain tumours
        (  # Task05 prostate: slices of 3.6 mm
            (0.625, 0.625, 3.6),
            (256, 320, 20),
            [(2, 2, 1), (2, 2, 1), 2, 2, (2, 2, 1), (2, 2, 1)],
            [(3, 3, 1), (3, 3, 1), 3, 3, 3, 3, 3],
        ),
    ],
)
def test_levels_are_those_of_nnunets_plans(
    spacing: tuple[float, float, float], patch: Triple, strides: list[int | Triple], kernels: list[int | Triple]
) -> None:
    def whole(entries: list[int | Triple]) -> tuple[Triple, ...]:
        return tuple((entry,) * 3 if isinstance(entry, int) else entry for entry in entries)

    levels = network_levels(spacing, patch)
    assert (levels.strides, levels.kernels, levels.patch) == (whole(strides), whole(kernels), patch)


def test_a_patch_is_rounded_up_to_what_the_levels_divide() -> None:
    levels = network_levels(ISOTROPIC, (35, 50, 36))
    assert levels.patch == (40, 56, 40) and levels.divisors == (8, 8, 8)


@pytest.mark.parametrize("name", networks.names())
@pytest.mark.parametrize("patch", [(35, 50, 36), (24, 20, 18), (150, 150, 40)])
def test_every_network_takes_its_planned_patch(name: str, patch: Triple) -> None:
    for spacing in (ISOTROPIC, (1.0, 1.0, 3.0)):
        network = network_for(name, spacing, patch, 16)
        assert network.section.patch_problem(network.patch) is None
        sizes = zip(network.patch, patch, network.units, strict=True)
        assert all(size % unit == 0 and size >= least for size, least, unit in sizes)


def test_volumes_of_few_voxels_are_refused() -> None:
    with pytest.raises(UserError, match="unet needs larger volumes, such as 8 voxels along each axis"):
        network_for("unet", ISOTROPIC, (5, 5, 5), 16)
    assert network_for("unet", ISOTROPIC, (8, 8, 8), 16).patch == (8, 8, 8)


# -- voxel size and crop ---------------------------------------------------------------------------------------------


def test_spacing_is_the_median() -> None:
    cases = [case(str(n), (60, 60, 60), (size, 1.0, 1.0)) for n, size in enumerate((0.8, 1.0, 2.0))]
    volumes = plan_volumes(fingerprint(cases), DataConfig())
    assert volumes.spacing == ISOTROPIC
    assert volumes.shapes == ((48, 60, 60), (60, 60, 60), (120, 60, 60)) and volumes.median_shape == (60, 60, 60)


def test_thick_slices_are_resampled_to_the_thinner_ones() -> None:
    """nnU-Net's rule for anisotropic data: the 10th percentile along the axis of the thick slices."""
    thick = [case(str(n), (200, 200, 30), (1.0, 1.0, size)) for n, size in enumerate((4, 5, 6, 6, 6, 6, 6, 6, 6, 8))]
    volumes = plan_volumes(fingerprint(thick), DataConfig())
    assert volumes.spacing[:2] == (1.0, 1.0) and volumes.spacing[2] == pytest.approx(4.9)
    assert "10th percentile" in volumes.choices[0].reason
    many = [case(str(n), (200, 200, 90), (1.0, 1.0, size)) for n, size in enumerate((4, 5, 6))]
    assert plan_volumes(fingerprint(many), DataConfig()).spacing[2] == 5.0  # thick voxels, but not a flat volume


def test_a_given_spacing_stays() -> None:
    given = DataConfig(spacing=(2.0, 2.0, 2.0))
    assert plan_volumes(fingerprint([case("a", (60, 60, 60))]), given).median_shape == (30, 30, 30)


def test_a_crop_is_planned_where_it_saves_and_loses_no_label() -> None:
    inner = ((10, 50), (10, 50), (10, 50))

    def crop(**fields: object) -> object:
        volumes = plan_volumes(fingerprint([case("a", (60, 60, 60), nonzero_box=inner, **fields)]), DataConfig())
        return volumes.choices[1].value, volumes.median_shape

    assert crop() == ({"threshold": 0.0, "margin": 4}, (48, 48, 48))
    assert crop(foreground_box=((6, 30), (20, 30), (20, 30))) == ({"threshold": 0.0, "margin": 4}, (48, 48, 48))
    assert crop(foreground_box=((5, 30), (20, 30), (20, 30))) == (None, (60, 60, 60))
    assert crop(whole=intensities(-2, 3)) == (None, (60, 60, 60))  # a crop keeps the voxels above 0
    ct = case("a", (60, 60, 60), body_box=inner)
    value = plan_volumes(fingerprint([ct], ["CT"]), DataConfig()).choices[1].value
    assert value == {"threshold": -500.0, "margin": 4}


def test_the_margin_of_a_crop_is_in_resampled_voxels() -> None:
    """Four voxels of 2 mm are eight of the file: the labels are within them, and 56 mm are 28 voxels."""
    inner, labels = ((10, 50), (10, 50), (10, 50)), ((3, 30), (20, 30), (20, 30))
    made = fingerprint([case("a", (60, 60, 60), nonzero_box=inner, foreground_box=labels)])
    volumes = plan_volumes(made, DataConfig(spacing=(2.0, 2.0, 2.0)))
    assert volumes.choices[1].value is None  # the box with its margin is 81 % of the volume
    inner = ((10, 40), (10, 40), (10, 40))
    made = fingerprint([case("a", (60, 60, 60), nonzero_box=inner, foreground_box=labels)])
    volumes = plan_volumes(made, DataConfig(spacing=(2.0, 2.0, 2.0)))
    assert volumes.choices[1].value == {"threshold": 0.0, "margin": 4} and volumes.median_shape == (23, 23, 23)


@pytest.mark.parametrize(
    ("given", "shape", "said"),
    [
        (None, 60, "Given with the command."),
        ({"threshold": 40.0, "margin": 0}, 40, "a median of at most 30% remains"),
        ({"threshold": 0.0, "margin": 4}, 48, "a median of at most 51% remains"),
        ({"threshold": -700.0, "margin": 0}, 60, "knows no box of this threshold"),
        ({"threshold": -500.0, "margin": 0}, 20, "Labels of 1 of 1 cases reach beyond it, and are lost."),
        ({"threshold": -500.0, "margin": 0, "channel": "PET"}, 60, "knows no box of this threshold"),
    ],
)
def test_the_patch_follows_a_given_crop(given: dict[str, object] | None, shape: int, said: str) -> None:
    inner, body = ((10, 50), (10, 50), (10, 50)), ((30, 50), (30, 50), (30, 50))
    channels = ["CT", "PET"] if given and "channel" in given else ["CT"]
    box = body if given and given["threshold"] == -500.0 else None
    made = fingerprint([case("a", (60, 60, 60), nonzero_box=inner, body_box=box, channels=len(channels))], channels)
    volumes = plan_volumes(made, DataConfig.model_validate({"crop_foreground": given}))
    assert volumes.median_shape == (shape, shape, shape) and said in volumes.choices[1].reason


# -- intensities -----------------------------------------------------------------------------------------------------


def test_ct_is_normalised_by_the_foreground_of_all_cases() -> None:
    cases = [case(str(n), (9, 9, 9), foreground=intensities(-100, 300)) for n in range(3)]
    (choice,) = plan_intensity(fingerprint(cases, ["CT"]), DataConfig())
    assert choice.value["mode"] == "zscore" and choice.value["clip"] == pytest.approx([-98, 298])
    assert choice.value["mean"] == pytest.approx(100) and choice.value["deviation"] == pytest.approx(115.47, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "lowest", "fixed"), [("image", -1024, True), ("MRI", -1024, False), ("image", 0, False)]
)
def test_an_unnamed_channel_with_air_is_ct(name: str, lowest: float, fixed: bool) -> None:
    cases = [case("a", (9, 9, 9), whole=intensities(lowest, 2000))]
    (choice,) = plan_intensity(fingerprint(cases, [name]), DataConfig())
    assert ("mean" in choice.value) is fixed


def test_other_channels_are_normalised_by_volume() -> None:
    (plain,) = plan_intensity(fingerprint([case("a", (9, 9, 9))]), DataConfig())
    assert plain.value == {"mode": "zscore"}
    (bright,) = plan_intensity(fingerprint([case("a", (9, 9, 9), whole=intensities(0, 9, maximum=1e6))]), DataConfig())
    assert bright.value == {"mode": "zscore", "percentiles": [0.5, 99.5]} and "1 of 1 cases" in bright.reason
    stripped = case("a", (9, 9, 9), nonzero_box=((0, 6), (0, 6), (0, 6)))
    (skull,) = plan_intensity(fingerprint([stripped]), DataConfig())
    assert skull.value == {"mode": "zscore", "nonzero": True}


def test_channels_of_two_kinds_have_settings_of_their_own() -> None:
    (choice,) = plan_intensity(fingerprint([case("a", (9, 9, 9), channels=2)], ["CT", "PET"]), DataConfig())
    assert choice.value["channels"]["PET"] == {"mode": "zscore"} and "clip" in choice.value["channels"]["CT"]
    assert DataConfig.model_validate({"intensity": choice.value}).intensity.problems(["CT", "PET"]) == []


# -- patch and batch -------------------------------------------------------------------------------------------------


def unet(patch: Triple) -> PlannedNetwork:
    return network_for("unet", ISOTROPIC, patch, 16)


def test_the_patch_keeps_the_proportions_and_fits() -> None:
    """The share of the limit is that of the voxels: at most 64^3 in two samples."""

    def load(network: PlannedNetwork, micro_batch: int) -> float:
        return micro_batch * prod(network.patch) / (2 * 64**3)

    fitted = PatchSearch((256, 128, 128), ISOTROPIC, unet, load).largest(2)
    assert fitted is not None
    x, y, z = fitted.network.patch
    assert 0.6 < fitted.load <= 1 and not fitted.is_largest
    assert abs(y - z) <= 16 and 1.4 <= x / y <= 2.6  # a step of the search changes one axis
    whole = PatchSearch((30, 30, 30), ISOTROPIC, unet, load).largest(2)
    assert whole is not None and whole.is_largest and whole.network.patch == (32, 32, 32)
    assert largest_micro_batch(whole, 100, load).micro_batch == 16
    assert largest_micro_batch(whole, 5, load).micro_batch == 5


def test_a_patch_shrinks_by_the_unit_of_the_smaller_network() -> None:
    """256 voxels have six halvings and 224 have five: nnU-Net goes from 256 to 224, not to 192."""

    def load(network: PlannedNetwork, micro_batch: int) -> float:
        return prod(network.patch) / (224 * 224 * 160)

    fitted = PatchSearch((240, 240, 155), ISOTROPIC, unet, load).largest(2)
    assert fitted is not None and fitted.network.patch == (224, 224, 160)


def test_a_limit_that_nothing_fits_ends_with_the_smallest_patch() -> None:
    search = PatchSearch((64, 64, 64), ISOTROPIC, unet, lambda network, micro_batch: 7.0)
    assert search.largest(2) is None
    smallest = search.smallest(2)
    assert smallest.load == 7 and max(smallest.network.patch) <= 16


def test_windows_of_a_validation() -> None:
    assert windows((35, 50, 36), (40, 56, 40)) == 1
    assert windows((96, 64, 64), (64, 64, 64)) == 2


# -- the file --------------------------------------------------------------------------------------------------------


def test_choices_become_commented_yaml() -> None:
    choices = [
        Choice("name", "a"),
        Choice("data.root", "/data: x"),
        Choice("data.spacing", [1.0, 1.0, 3.27], "The voxels."),
        Choice("optim.lr", 1e-5),
    ]
    text = commented_yaml(["A plan.", "Second."], choices)
    assert text == (
        "# A plan.\n#\n# Second.\n\nname: a\n\ndata:\n  root: '/data: x'\n  # The voxels.\n"
        "  spacing: [1.0, 1.0, 3.27]\n\noptim:\n  lr: 1.0e-05\n"
    )
    assert plain_values(choices)["data"] == {"root": "/data: x", "spacing": [1.0, 1.0, 3.27]}
