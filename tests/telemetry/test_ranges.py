"""One annotation, three readings: the time account, the torch profiler's table, NVTX."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from fusionseg.telemetry.ranges import PHASES, TimeAccount, account, annotate


def test_every_second_is_counted_once() -> None:
    book = TimeAccount()
    start = time.perf_counter()
    with book.measure("outer"):
        time.sleep(0.02)
        with book.measure("inner"):
            time.sleep(0.05)
            with book.measure("innermost"):
                time.sleep(0.03)
        with book.measure("inner"):
            time.sleep(0.01)
    total = time.perf_counter() - start
    taken = book.take()
    assert set(taken) == {"outer", "inner", "innermost"}
    assert sum(taken.values()) == pytest.approx(total, abs=0.02)  # 0.09 too much if counted twice
    assert taken["outer"] >= 0.02 and taken["inner"] >= 0.06 and taken["innermost"] >= 0.03
    assert book.take() == {}


def test_a_range_within_itself() -> None:
    book = TimeAccount()
    start = time.perf_counter()
    with book.measure("a"), book.measure("a"):
        time.sleep(0.02)
    assert book.take()["a"] == pytest.approx(time.perf_counter() - start, abs=0.01)


def test_closed_when_the_body_raises() -> None:
    account().take()
    start = time.perf_counter()
    with pytest.raises(ZeroDivisionError), annotate("outer"):
        try:
            with annotate("broken"):
                time.sleep(0.02)
                raise KeyError
        except KeyError:
            pass
        with annotate("next"):
            time.sleep(0.01)
        1 / 0  # noqa: B018
    taken = account().take()
    assert taken["broken"] >= 0.02 and taken["next"] >= 0.01 and taken["outer"] > 0
    assert sum(taken.values()) <= time.perf_counter() - start
    assert account()._inner == []


def test_as_a_decorator() -> None:
    @annotate("validate")
    def work(value: int) -> int:
        """What it does."""
        time.sleep(0.01)
        return value + 1

    account().take()
    assert [work(1), work(2)] == [2, 3]
    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    assert account().take()["validate"] >= 0.02


def test_every_thread_has_an_account_of_its_own() -> None:
    account().take()
    others: list[dict[str, float]] = []

    def work() -> None:
        with annotate("there"):
            pass
        others.append(account().take())

    with annotate("here"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [set(other) for other in others] == [{"there"}] and set(account().take()) == {"here"}


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


# A tool as NVTX loads it (NVIDIA/NVTX, c/include/nvtx3/nvtxDetail/nvtxTypes.h): it gets a table of pointers
# to the function pointers that the calls go through, and writes every push and pop of core2 to a file.
INJECTION = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef void (*Function)(void);
typedef struct { size_t size; int (*module)(int, Function ***, unsigned *); } Callbacks;
typedef struct {  /* nvtxEventAttributes_v2 */
    uint16_t version, size; uint32_t category; int32_t color_type; uint32_t color;
    int32_t payload_type, reserved; uint64_t payload; int32_t message_type; const char *message;
} Attributes;
static FILE *out;
static const char *domain_create(const char *name) { return strdup(name); }
static const char *string_register(const char *domain, const char *text) { return strdup(text); }
static int push(const char *domain, const Attributes *a) {
    fprintf(out, "%s push %s\n", domain, a->message); return 0; }
static int pop(const char *domain) { fprintf(out, "%s pop\n", domain); return 0; }
int InitializeInjectionNvtx2(const void *(*table)(uint32_t)) {
    const Callbacks *callbacks = table(1);                    /* NVTX_ETID_CALLBACKS */
    Function **core2; unsigned size;
    if (!callbacks || !callbacks->module(5, &core2, &size)) return 0;  /* NVTX_CB_MODULE_CORE2 */
    out = fopen(getenv("NVTX_TEST_OUTPUT"), "w");
    setvbuf(out, NULL, _IOLBF, 0);
    *core2[4] = (Function)push;                               /* NVTX_CBID_CORE2_DomainRangePushEx */
    *core2[5] = (Function)pop;                                /* ..._DomainRangePop */
    *core2[10] = (Function)string_register;                   /* ..._DomainRegisterStringA */
    *core2[12] = (Function)domain_create;                     /* ..._DomainCreateA */
    return 1;
}
"""
ANNOTATED = """
import sys
from fusionseg.telemetry.ranges import annotate

@annotate("validate")
def validate(number):
    with annotate("forward"):
        if number:
            raise KeyError

with annotate("data"), annotate("augment"):
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


@pytest.mark.skipif(
    shutil.which("gcc") is None and "gcc" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
    reason="needs gcc for the NVTX tool",
)
def test_nvtx_ranges_nest_also_when_the_body_raises(tmp_path: Path) -> None:
    (tmp_path / "tool.c").write_text(INJECTION)
    library, seen = tmp_path / "libtool.so", tmp_path / "seen.txt"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "tool.c"], check=True)
    environ = {key: value for key, value in os.environ.items() if key != "NVTX_DISABLE"}
    environ |= {"NVTX_INJECTION64_PATH": str(library), "NVTX_TEST_OUTPUT": str(seen)}
    subprocess.run([sys.executable, "-c", ANNOTATED], env=environ, check=True)
    depth, nested = 0, []
    for line in seen.read_text().splitlines():
        domain, action, *name = line.split(" ", 2)
        assert domain == "fusionseg"
        depth -= action == "pop"
        nested.append((depth, name[0] if name else "pop"))
        depth += action == "push"
    assert depth == 0
    called = [(0, "validate"), (1, "forward"), (1, "pop"), (0, "pop")]
    assert nested == [
        (0, "data"), (1, "augment"), (1, "pop"), (0, "pop"), *called, *called, (0, "own name"), (0, "pop"),
    ]  # fmt: skip


def test_the_phases_are_names_of_their_own() -> None:
    assert len(set(PHASES)) == len(PHASES) and {
        "data",
        "forward",
        "backward",
        "optimizer",
        "validate",
    } <= set(PHASES)
