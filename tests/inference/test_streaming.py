"""Logits in a stream of rows, against MONAI's sliding windows and the interpolation of torch for the whole volume."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionseg.data.preprocessing.volume import Volume
from fusionseg.inference.streaming.chunks import CHUNK_VALUES, sampled_chunks, summed_probabilities
from fusionseg.inference.streaming.logits import Rows, StreamSettings, _OpenRows, stream_logits
from fusionseg.inference.streaming.member_volume import MemberVolume
from fusionseg.inference.streaming.memory import slabs, stream_memory
from fusionseg.inference.streaming.window_layout import WindowLayout

CPU = torch.device("cpu")
OUTPUTS = 17


def network(outputs: int = OUTPUTS, channels: int = 1) -> nn.Module:
    """A convolution that knows where it is in its window, so that each window gives other logits."""
    torch.manual_seed(0)
    return nn.Conv3d(channels, outputs, 3, padding=1).requires_grad_(requires_grad=False)


def settings(**changes: Any) -> StreamSettings:
    given = {"blend": "gaussian", "device": CPU, "stitch_device": CPU, "outputs": OUTPUTS, "sigmoid": False}
    return StreamSettings(**{**given, **changes})


def image(*shape: int) -> Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(1))


def joined(rows: list[Rows], axis: int) -> Tensor:
    """The logits of the whole volume; each row must be there once."""
    rows = sorted(rows, key=lambda one: one.start)
    ends = [one.start + one.logits.shape[axis + 1] for one in rows]
    assert [one.start for one in rows] == [0, *ends[:-1]]
    return torch.cat([one.logits for one in rows], dim=axis + 1)


@pytest.mark.parametrize(
    ("shape", "patch", "overlap", "batch"),
    [
        ((33, 20, 17), (8, 8, 8), 0.5, 4),
        ((33, 20, 17), (8, 12, 5), 0.25, 3),  # windows of another size along each axis
        ((9, 40, 12), (16, 8, 12), 0.7, 1),  # smaller than a window along the first axis
        ((5, 6, 7), (8, 9, 8), 0.5, 2),  # smaller than a window
        ((21, 3, 4), (4, 4, 4), 0.0, 16),  # windows of several starts in one batch
        ((16, 16, 16), (16, 16, 16), 0.5, 4),  # one window
    ],
)
@pytest.mark.parametrize(("axis", "descending"), [*product(range(3), (False, True))])
def test_rows_are_the_logits_of_monai(
    shape: Any, patch: Any, overlap: float, batch: int, axis: int, descending: bool
) -> None:
    layout = WindowLayout.of(shape, patch, overlap, axis, descending=descending)
    seen: list[int] = []
    model = network()

    def counted(windows: Tensor) -> Tensor:
        seen.append(len(windows))
        return model(windows)  # type: ignore[no-any-return]

    rows = list(stream_logits(counted, image(*shape), (0.25,), layout, batch, settings()))
    starts = [one.start for one in rows]
    assert starts == sorted(starts, reverse=descending)
    assert sum(seen) == layout.count and max(seen) <= batch  # each window is computed once
    expected = sliding_window_inference(
        image(*shape)[None], patch, 4, model, overlap=overlap, mode="gaussian", cval=0.25
    )
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(joined(rows, axis), expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("overlap", "batch"), [(0.5, 4), (0.75, 1), (0.0, 2), (0.3, 30)])
def test_few_rows_are_open_at_the_same_time(overlap: float, batch: int) -> None:
    layout = WindowLayout.of((64, 12, 12), (8, 8, 8), overlap)
    opened, most = set(), 0
    closed: set[int] = set()
    for boxes, segments in layout.steps(batch):
        opened |= {row for box in boxes for row in range(box[0].start, box[0].stop)}
        most = max(most, len(opened - closed))
        closed |= {row for low, high in segments for row in range(low, high)}
    assert closed == set(range(64)) and most == layout.open_rows(batch) < 64


def test_fewer_windows_at_a_time_where_the_memory_ends() -> None:
    sizes: list[int] = []
    model = network()

    def small(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        if len(windows) > 1:
            raise torch.OutOfMemoryError("too many windows")
        return model(windows)  # type: ignore[no-any-return]

    layout = WindowLayout.of((24, 16, 16), (8, 8, 8), 0.5)
    rows = list(stream_logits(small, image(24, 16, 16), (0,), layout, 8, settings()))
    whole = list(stream_logits(model, image(24, 16, 16), (0,), layout, 8, settings()))
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {1}
    torch.testing.assert_close(joined(rows, 0), joined(whole, 0), atol=1e-5, rtol=1e-5)


def test_one_batch_of_logits_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Any]] = []
    model = network()

    def watched(windows: Tensor) -> Tensor:
        assert [one for one in alive if one() is not None] == []
        array = model(windows).numpy()
        alive.append(weakref.ref(array))
        return torch.from_numpy(array)  # holds the array as long as a view of the logits lives

    layout = WindowLayout.of((24, 16, 16), (8, 8, 8), 0.5)
    assert len(list(stream_logits(watched, image(24, 16, 16), (0,), layout, 4, settings()))) == 6
    assert len(alive) == 15


@pytest.mark.parametrize("sigmoid", [False, True])
def test_windows_of_air_are_background_without_the_network(sigmoid: bool) -> None:
    volume = torch.full((1, 40, 16, 16), -2.0)
    volume[:, 30:34, 5:9, 5:9] = 1
    seen: list[Tensor] = []
    model = network()

    def recorded(windows: Tensor) -> Tensor:
        seen.append(windows)
        return model(windows)  # type: ignore[no-any-return]

    layout = WindowLayout.of((40, 16, 16), (8, 8, 8), 0.5)
    rows = stream_logits(recorded, volume, (-2.0,), layout, 4, settings(sigmoid=sigmoid, skips_air=True))
    logits = joined(list(rows), 0)
    every = joined(list(stream_logits(model, volume, (-2.0,), layout, 4, settings(sigmoid=sigmoid))), 0)
    windows = torch.cat(seen)
    assert 0 < len(windows) < layout.count / 2 and (windows > 0).flatten(1).any(dim=1).all()
    # The structure is in computed windows alone, and further away there is nothing but background.
    torch.testing.assert_close(logits[:, 31:33, 6:8, 6:8], every[:, 31:33, 6:8, 6:8], atol=1e-5, rtol=1e-5)
    probabilities = logits.sigmoid() if sigmoid else logits.softmax(dim=0)
    assert (probabilities[1:, :20] < 1e-30).all() and (sigmoid or (probabilities[0, :20] == 1).all())
    single = WindowLayout.of((40, 16, 16), (40, 16, 16), 0.5)
    (air,) = stream_logits(
        recorded, torch.full((1, 40, 16, 16), -2.0), (-2.0,), single, 4, settings(sigmoid=sigmoid, skips_air=True)
    )
    assert (air.logits[1:] < -50).all()


# -- the original grid ---------------------------------------------------------------------------------------


def expected_probabilities(logits: Tensor, volume: Volume, *, sigmoid: bool) -> Tensor:
    """All voxels at once, by a position for each."""
    mapping = np.linalg.inv(volume.affine) @ volume.original_affine
    grid = np.stack(np.meshgrid(*map(np.arange, volume.original_shape), indexing="ij"), -1)
    points = grid @ mapping[:3, :3].T + mapping[:3, 3]
    size = np.array(logits.shape[1:])
    unit = torch.from_numpy(((2 * points + 1) / size - 1)[..., ::-1].copy())[None]
    values = F.grid_sample(logits[None].double(), unit, padding_mode="border", align_corners=False)[0]
    probabilities = values.sigmoid() if sigmoid else values.softmax(dim=0)
    outside = torch.from_numpy(((points < -0.9999) | (points > size - 1e-4)).any(-1))
    probabilities[:, outside] = 0
    if not sigmoid:
        probabilities[0, outside] = 1
    return probabilities.float()


def oblique(degrees: float, *spacing: float) -> NDArray[np.float64]:
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    affine = np.eye(4)
    affine[:3, :3] += np.sin(np.deg2rad(degrees)) * cross + (1 - np.cos(np.deg2rad(degrees))) * cross @ cross
    affine[:3, :3] *= spacing
    affine[:3, 3] = 3, -40, 50
    return affine


def moved(affine: NDArray[np.float64], start: tuple[int, ...], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of a grid in the voxels of another one."""
    change = np.eye(4)
    change[:3, :3], change[:3, 3] = steps, start
    return affine @ change


TURN = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])
BASE = oblique(20, 0.8, 0.9, 2.0)
# Affine and shape of the prepared volume, for a file of 14 x 22 x 18 voxels with the affine BASE.
GRIDS: dict[str, tuple[NDArray[np.float64], tuple[int, int, int]]] = {
    "same": (BASE, (14, 22, 18)),
    "turned": (moved(BASE, (13, 0, 17), TURN), (22, 18, 14)),
    "cropped": (moved(BASE, (3, 5, 2), np.eye(3)), (8, 12, 14)),
    "coarser": (moved(BASE, (0, 0, 0), np.diag([1.7, 1.3, 1.0])), (9, 17, 18)),
    "finer_turned_cropped": (moved(BASE, (11, 3, 15), TURN * 0.73), (20, 15, 12)),
    "rotated": (oblique(35, 1.1, 1.2, 1.5), (20, 19, 22)),
    "sheared": (moved(BASE, (0, 0, 0), np.array([[1, 0.2, 0], [0, 1, 0], [0, 0, 1.2]])), (14, 22, 16)),
}


def volume_of(name: str) -> Volume:
    affine, shape = GRIDS[name]
    return Volume(image(*shape).numpy(), None, affine, (14, 22, 18), BASE)


def test_rows_are_freed_before_the_next_windows_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of them in the loop of the caller would keep them: the memory of a large volume would be nearly twice the
    bound."""
    closed: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    model = network()

    class Counting(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            alive.append(sum(one() is not None for one in closed))
            return model(windows)  # type: ignore[no-any-return]

    original = _OpenRows.close

    def close(rows: _OpenRows, segment: Any) -> Tensor:
        logits = original(rows, segment)
        closed.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(_OpenRows, "close", close)
    monkeypatch.setattr("fusionseg.inference.streaming.chunks.CHUNK_VALUES", OUTPUTS * 22 * 18)  # a plane at a time
    volume = volume_of("same")
    member = MemberVolume(volume, Counting(), (4, 22, 18), 0.5, 1)
    whole = (slice(0, 14), slice(0, 22), slice(0, 18))
    for chunk, sampled in sampled_chunks([member.rows(None, 0, settings())], whole, 0, OUTPUTS):
        assert sampled[0] is not None and sampled[0].box == chunk
    assert len(closed) > 5 and len(alive) > 5
    assert max(alive) == 0


@pytest.mark.parametrize("name", GRIDS)
def test_the_way_to_the_file_is_that_of_positions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of a line, whole planes and all voxels; in one slab and in several; for one network and two."""
    volume, model = volume_of(name), network()
    member = MemberVolume(volume, model, (6, 5, 7), 0.25, 4)
    logits = sliding_window_inference(
        torch.from_numpy(volume.image)[None], member.patch, 4, model, overlap=0.25, mode="gaussian"
    )
    assert isinstance(logits, Tensor)
    for axis, values, edges, sigmoid in (
        (member.longest_axis(), CHUNK_VALUES, (0, 14), False),
        (0, OUTPUTS * 30, (0, 14), True),
        (1, OUTPUTS * 700, (0, 4, 14), False),
        (2, 1, (0, 1, 14), False),
    ):
        monkeypatch.setattr("fusionseg.inference.streaming.chunks.CHUNK_VALUES", values)
        found = torch.full((OUTPUTS, 14, 22, 18), torch.nan)
        for start, stop in pairwise(edges):
            part = (slice(start, stop), slice(0, 22), slice(0, 18))
            slab = part if len(edges) > 2 else None
            rows = [member.rows(slab, axis, settings(sigmoid=sigmoid)) for _ in range(2)]
            for chunk, sampled in sampled_chunks(rows, part, axis, OUTPUTS):
                found[(slice(None), *chunk)] = summed_probabilities(sampled, chunk, OUTPUTS, sigmoid=sigmoid) / 2
        expected = expected_probabilities(logits[0], volume, sigmoid=sigmoid)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


# -- memory --------------------------------------------------------------------------------------------------


def peak_bytes(call: Callable[[], object]) -> int:
    """The peak of all tensors that a call allocates."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [one for one in profiler.profiler.kineto_results.events() if one.name() == "[memory]"]
    return max(accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())))


def repeated(windows: Tensor) -> Tensor:
    """Logits without other memory than their own."""
    return windows.expand(-1, OUTPUTS, -1, -1, -1).contiguous()


LARGE: dict[str, tuple[NDArray[np.float64], tuple[int, int, int]]] = {
    "same": (np.eye(4), (40, 64, 72)),
    "thick_slices": (np.diag([2.0, 2.0, 5.0, 1.0]), (20, 32, 14)),
    "turned": (moved(np.eye(4), (0, 63, 71), np.array([[1.0, 0, 0], [0, 0, -1], [0, -1, 0]])), (40, 72, 64)),
    "oblique": (oblique(15, 1, 1, 1), (32, 48, 48)),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_memory_is_that_of_the_estimate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of all tensors, for the whole volume and in as many slabs as three quarters of its memory need."""
    monkeypatch.setattr("fusionseg.inference.streaming.chunks.CHUNK_VALUES", 30_000)
    affine, shape = LARGE[name]
    volume = Volume(image(40, 64, 72).numpy(), None, np.eye(4), shape, affine)
    member = MemberVolume(volume, repeated, (12, 12, 12), 0.5, 4)
    axis = member.longest_axis()
    whole = stream_memory([member], axis, OUTPUTS)
    for budget in (whole.total, 0.75 * whole.total):
        parts = slabs([member], axis, OUTPUTS, budget)
        assert (len(parts) == 1) == (budget == whole.total) and len(parts) < 6
        for part in parts[:2]:
            slab = part if len(parts) > 1 else None

            def predict(slab: Any = slab, part: Any = part) -> None:
                rows = [member.rows(slab, axis, settings())]
                for chunk, sampled in sampled_chunks(rows, part, axis, OUTPUTS):
                    summed_probabilities(sampled, chunk, OUTPUTS, sigmoid=False)

            needed = stream_memory([member], axis, OUTPUTS, slab).total
            peak = peak_bytes(predict)
            assert needed <= budget and 0.5 * needed < peak < needed + 2 * volume.image.nbytes
