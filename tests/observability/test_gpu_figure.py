"""The picture of a gpu.csv."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from fusionseg.observability.gpu.figure import MAX_POINTS, downsample, plot_gpu_csv
from fusionseg.observability.gpu.samples import COLUMNS, GpuCsv, Sample
from fusionseg.utils.errors import UserError


def test_a_line_for_each_gpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    table = GpuCsv(path)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for second in range(60):
        samples = [
            Sample("GPU-a", "0", busy_percent=second, memory_used_gb=3, power_w=100, temperature_c=50),
            Sample("MIG-b", "1:1", memory_used_gb=1),  # no utilisation there
        ]
        table.write(samples, begin + timedelta(seconds=second))
    table.close()
    with path.open("a") as file:
        file.write("2026-01-01T00:0")
    plot_gpu_csv(path, tmp_path / "gpu.png")
    picture = imread(tmp_path / "gpu.png")
    assert picture.shape[:2] == (960, 1080)
    for colour in ((31, 119, 180), (255, 127, 14)):  # the first two of matplotlib's
        assert np.abs(255 * picture[..., :3] - colour).max(axis=-1).min() < 40
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no gpu.csv"),
        ("a,b\n1,2\n", "no gpu.csv"),
        (",".join(COLUMNS) + "\n", "no samples"),
        (",".join(COLUMNS) + "\nyesterday" + "," * (len(COLUMNS) - 1) + "\n", "line 2: "),
    ],
)
def test_no_picture_of_what_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gpu.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        plot_gpu_csv(path, tmp_path / "gpu.png")
    assert not (tmp_path / "gpu.png").exists()


def test_no_picture_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read: No such file"):
        plot_gpu_csv(tmp_path / "gone.csv", tmp_path / "gpu.png")


def test_few_points_stay_as_they_are() -> None:
    table = np.array([[0.0, 1.0], [1.0, np.nan], [2.0, 3.0]])
    np.testing.assert_array_equal(downsample(table), table)
    np.testing.assert_array_equal(downsample(table[:1]), table[:1])


def test_many_points_are_averaged_over_what_is_known() -> None:
    seconds = np.arange(2.0 * MAX_POINTS)
    values = np.where(seconds % 2 == 0, 10.0, np.nan)
    values[-2:] = np.nan
    thin = downsample(np.stack([seconds, values], axis=1))
    assert len(thin) == MAX_POINTS
    np.testing.assert_array_equal(thin[:, 0], seconds[::2] + 0.5)
    assert (thin[:-1, 1] == 10).all() and np.isnan(thin[-1, 1])


def test_a_line_is_broken_where_the_run_stood_still() -> None:
    table = np.array([[second, 5.0] for second in (0, 1, 2, 3, 100, 101, 102)])
    broken = downsample(table)
    assert np.flatnonzero(np.isnan(broken[:, 1])).tolist() == [4]
    np.testing.assert_array_equal(np.delete(broken, 4, axis=0), table)
