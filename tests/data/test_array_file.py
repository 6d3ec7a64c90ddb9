"""The files of prepared arrays: what numpy writes is read, mapped and whole, by many threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionseg.data.preprocessing.array_file import read_array


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (2, 3, 4, 5)),
        ("float16", (1, 1, 1, 1)),
        ("uint8", (128, 128, 128)),
        ("int64", (7,)),
        ("int64", (0,)),
    ],
)
def test_it_reads_what_numpy_writes(tmp_path: Path, dtype: str, shape: tuple[int, ...], mapped: bool) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy", mapped=mapped)
    assert found.dtype == array.dtype and found.shape == shape and not found.flags.writeable
    assert isinstance(found, np.memmap) == (mapped and array.size > 0)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "change", [lambda b: b"", lambda b: b[:40], lambda b: b[:-1], lambda b: b + b"x", lambda b: b[8:]]
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, mapped: bool) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    (tmp_path / "a.npy").write_bytes(change((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(ValueError, match=r"header|expected"):
        read_array(tmp_path / "a.npy", mapped=mapped)


def test_another_order_of_axes_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4), order="F"))
    with pytest.raises(ValueError, match="header"):
        read_array(tmp_path / "a.npy", mapped=False)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    arrays = [np.full((2, 3, index + 1), index) for index in range(20)]
    for index, array in enumerate(arrays):
        np.save(tmp_path / f"{index}.npy", array)
    with ThreadPoolExecutor(8) as threads:
        read = threads.map(lambda index: read_array(tmp_path / f"{index % 20}.npy", mapped=index % 3 == 0), range(4000))
        assert all(np.array_equal(found, arrays[index % 20]) for index, found in enumerate(read))
