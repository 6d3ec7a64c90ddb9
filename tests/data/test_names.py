"""Names of labels and channels are matched by name, or not at all."""

from __future__ import annotations

import pytest

from fusionseg.data.formats.channel_names import channel_order, label_order


@pytest.mark.parametrize(
    ("wanted", "given", "order"),
    [
        (("b", "liver", "tumour"), ("b", "liver", "tumour"), (0, 1, 2)),
        (("b", "liver", "tumour"), ("background", "tumour", "liver"), (0, 2, 1)),
        (("b", "x", "y", "z"), ("b", "z", "x", "y"), (0, 2, 3, 1)),
        (("b", "Left  Lung", "x"), ("air", "X", "left lung"), (0, 2, 1)),
        (("b", "liver", "tumour"), ("b", "liver", "lesion"), None),
        (("b", "liver"), ("b", "liver", "tumour"), None),
        (("liver", "b"), ("b", "liver"), None),
        (("b", "x", "X"), ("b", "X", "x"), None),
    ],
)
def test_labels(wanted: tuple[str, ...], given: tuple[str, ...], order: tuple[int, ...] | None) -> None:
    assert label_order(dict(enumerate(wanted)), dict(enumerate(given))) == order


@pytest.mark.parametrize(
    ("wanted", "given", "order"),
    [
        (("T1", "FLAIR"), ("flair", "t1"), (1, 0)),
        (("m0", "m1"), ("m1", "m0"), (1, 0)),
        (("T1", "FLAIR"), ("channel0", "channel1"), (0, 1)),
        (("image",), ("CT",), (0,)),
        (("CT",), ("MRI",), None),
        (("T1", "FLAIR"), ("channel0",), None),
        (("MRI", "MRI"), ("MRI", "MRI"), (0, 1)),
        (("T1", "T2"), ("MRI", "MRI"), None),
    ],
)
def test_channels(wanted: tuple[str, ...], given: tuple[str, ...], order: tuple[int, ...] | None) -> None:
    assert channel_order(wanted, given) == order
