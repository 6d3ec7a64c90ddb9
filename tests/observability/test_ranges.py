"""One annotation, three readings: the time account, the torch profiler's table, NVTX."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import nvtx
import pytest
import torch
from nvtx_tool import NvtxTool

from fusionseg.observability.ranges import PHASES, PhaseTimer, annotate, annotate_modules, phase_timer


def test_every_second_is_counted_once() -> None:
    timer = PhaseTimer()
    start = time.perf_counter()
    with timer.measure("outer"):
        time.sleep(0.02)
        with timer.measure("inner"):
            time.sleep(0.05)
            with timer.measure("innermost"):
                time.sleep(0.03)
        with timer.measure("inner"):
            time.sleep(0.01)
    total = time.perf_counter() - start
    taken = timer.take()
    assert set(taken) == {"outer", "inner", "innermost"}
    assert 0.11 <= sum(taken.values()) <= total + 0.001  # 0.09 too much if counted twice
    assert taken["outer"] >= 0.02 and taken["inner"] >= 0.06 and taken["innermost"] >= 0.03
    assert timer.take() == {}


def test_a_range_within_itself() -> None:
    timer = PhaseTimer()
    start = time.perf_counter()
    with timer.measure("a"), timer.measure("a"):
        time.sleep(0.02)
    assert 0.02 <= timer.take()["a"] <= time.perf_counter() - start + 0.001  # 0.02 too much if counted twice


def test_closed_when_the_body_raises() -> None:
    phase_timer().take()
    start = time.perf_counter()
    with pytest.raises(ZeroDivisionError), annotate("step"):
        try:
            with annotate("forward"):
                time.sleep(0.02)
                raise KeyError
        except KeyError:
            pass
        with annotate("loss"):
            time.sleep(0.01)
        1 / 0  # noqa: B018
    taken = phase_timer().take()
    assert taken["forward"] >= 0.02 and taken["loss"] >= 0.01 and taken["step"] > 0
    assert sum(taken.values()) <= time.perf_counter() - start
    assert phase_timer()._inner == []


def test_as_a_decorator() -> None:
    @annotate("validate")
    def work(value: int) -> int:
        """What it does."""
        time.sleep(0.01)
        return value + 1

    phase_timer().take()
    assert [work(1), work(2)] == [2, 3]
    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    assert phase_timer().take()["validate"] >= 0.02


def test_every_thread_has_an_account_of_its_own() -> None:
    phase_timer().take()
    others: list[dict[str, float]] = []

    def work() -> None:
        with annotate("log"):
            pass
        others.append(phase_timer().take())

    with annotate("validate"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [set(other) for other in others] == [{"log"}] and set(phase_timer().take()) == {"validate"}


def test_the_torch_profiler_sees_the_names() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with annotate("forward"):
            torch.ones(3) + 1
        with pytest.raises(KeyError), annotate("loss"):
            raise KeyError
        with annotate("backward"):
            pass
    events = {event.key: event for event in profiler.key_averages()}
    assert {"forward", "loss", "backward"} <= set(events)
    assert all(events[name].count == 1 for name in ("forward", "loss", "backward"))
    inside = [event.name for event in profiler.events() if event.cpu_parent and event.cpu_parent.name == "forward"]
    assert "aten::add" in inside


ANNOTATED = """
import sys
from fusionseg.observability.ranges import annotate

@annotate("validate", 7)
def validate(number):
    with annotate("forward"):
        if number:
            raise KeyError

with annotate("data"), annotate("augment", 2):
    pass
validate(0)
try:
    validate(1)
except KeyError:
    pass
with annotate("own name"):
    pass
assert "torch" not in sys.modules, "annotate alone must not load torch"
"""


def test_nvtx_ranges_nest_also_when_the_body_raises(nvtx_tool: NvtxTool) -> None:
    subprocess.run([sys.executable, "-c", ANNOTATED], env={**os.environ, **nvtx_tool.environ()}, check=True)
    called = [(0, "validate", 7), (1, "forward", 0)]
    assert [(entry.depth, entry.name, entry.payload) for entry in nvtx_tool.ranges()] == [
        (0, "data", 0), (1, "augment", 2), *called, *called, (0, "own name", 0),
    ]  # fmt: skip


def test_the_time_of_a_finer_range_is_its_phases() -> None:
    phase_timer().take()
    with annotate("forward"), annotate("encoder1"):
        time.sleep(0.02)
    taken = phase_timer().take()
    assert set(taken) == {"forward"} and taken["forward"] >= 0.02


class Parts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
        self.broken = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.broken(self.encoder(self.encoder(x)))
        return result


def test_the_stages_of_a_network_also_when_one_raises() -> None:
    model = Parts()
    annotate_modules(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with annotate("forward"), pytest.raises(RuntimeError):
            model(torch.ones(1, 2))
        with annotate("loss"):
            pass
    names = {"forward", "loss", "encoder", "encoder.0", "encoder.1", "broken", "encoder.1.0"}
    events = [event for event in profiler.events() if event.name in names]
    assert sorted(event.name for event in events) == sorted(
        ["forward", "loss", "broken", *2 * ["encoder", "encoder.0", "encoder.1"]]  # two levels, and no third
    )
    parents = {event.name: event.cpu_parent.name if event.cpu_parent else None for event in events}
    assert parents == {
        "forward": None, "loss": None, "encoder": "forward", "encoder.0": "encoder", "encoder.1": "encoder",
        "broken": "forward",
    }  # fmt: skip


def test_every_phase_has_a_color_that_nvtx_knows() -> None:
    domain = nvtx.Domain("test")
    for name, color in PHASES.items():
        domain.get_event_attributes(message=name, color=color, category=name)
