"""The monitor's thread, its file and its summary, against a stand-in for the driver's library."""

from __future__ import annotations

import csv
from itertools import chain, repeat
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from faults.catalogue import assert_seen
from stand_in_nvml import StandIn

from fusionseg.observability.gpu.monitor import GpuMonitor, next_sample_time
from fusionseg.observability.gpu.samples import COLUMNS, GpuCsv, Sample, read_gpu_csv
from fusionseg.utils.errors import UserError

MONITOR = """
seen = []
def wait(condition):
    while not condition():
        time.sleep(0.005)
def monitor(path="gpu.csv", on_sample=seen.append, **options):
    return GpuMonitor(None if path is None else Path(path), interval_s=0.02, on_sample=on_sample, **options)
"""
RUN = (
    MONITOR
    + """
gpus = monitor()
assert gpus.start() is None and gpus.is_running
wait(lambda: len(seen) >= 6 or not gpus.is_running)
tell([gpus.is_running, gpus.stop()])
"""
)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "gpu.csv").open() as file:
        return list(csv.DictReader(file))


def so_many(values: list[float], count: int) -> list[float]:
    """What the stand-in answers to `count` questions: the last value for all that follow."""
    endless = chain(values, repeat(values[-1]))
    return [next(endless) for _ in range(count)]


def test_summary_and_file_have_what_was_measured(nvml: StandIn, tmp_path: Path) -> None:
    settings = """
devices 2
0.name A card
0.busy 100 80 30 10
0.memory_busy 50 10
0.power 100000 !999 400000
0.temperature 60 88 70
0.memory_used 1000000000 9500000000 2000000000
0.throttle 1 4 36 !999 0
0.ecc_corrected 7 7 9
1.throttle !3
1.ecc_uncorrected !3
"""
    (running, summary), errors = nvml.run(RUN, settings)
    assert running and errors == ""
    assert summary["interval_s"] == 0.02
    first, second = summary["gpus"]
    count = first["samples"]
    assert count == second["samples"] >= 6
    assert (first["name"], first["index"], first["uuid"]) == ("A card", "0", "GPU-00000000-0000-0000-0000-000000000000")
    assert first["busy_percent"] == pytest.approx(mean(so_many([100, 80, 30, 10], count)), abs=1e-3)
    assert first["memory_busy_percent"] == pytest.approx(mean(so_many([50, 10], count)), abs=1e-3)
    assert first["power_w"] == pytest.approx(mean([100, *[400] * (count - 2)]), abs=1e-3)
    assert (first["temperature_c"], first["memory_used_gb"], first["memory_total_gb"]) == (88, 9.5, 16)
    assert first["throttled"] == {"power": round(2 / (count - 1), 4), "thermal": round(1 / (count - 1), 4)}
    assert first["ecc"] == {"corrected": 9, "uncorrected": 0, "new_corrected": 2, "new_uncorrected": 0}
    assert second["throttled"] == {}
    assert second["ecc"]["uncorrected"] is None and second["ecc"]["new_uncorrected"] is None
    assert not first["lost"]

    written = rows(tmp_path)
    assert tuple(written[0]) == COLUMNS
    assert len(written) == 2 * count
    assert [row["index"] for row in written] == ["0", "1"] * count
    mine = written[::2]
    assert [float(row["busy_percent"]) for row in mine] == so_many([100, 80, 30, 10], count)
    assert [row["power_w"] for row in mine[:3]] == ["100", "", "400"]
    assert [row["throttle"] for row in mine[:5]] == ["none", "power", "power+thermal", "", "none"]
    assert written[1]["throttle"] == ""
    assert written[0]["time"] == written[1]["time"] and written[0]["time"].endswith("+00:00")
    read = list(read_gpu_csv(tmp_path / "gpu.csv"))
    assert len(read) == 2 * count
    assert (read[4]["throttle"], read[4]["memory_used_gb"], read[2]["power_w"]) == (("power", "thermal"), 2, None)


def test_reset_begins_anew(nvml: StandIn) -> None:
    code = MONITOR + """
def on_sample(samples):
    seen.append(samples)
    if len(seen) == 2:
        gpus.reset()
gpus = monitor(None, on_sample)
assert gpus.start() is None
wait(lambda: len(seen) >= 5)
tell(gpus.stop())
"""  # fmt: skip
    summary, _ = nvml.run(code, "0.busy 100 100 40\n0.temperature 95 90 50\n0.ecc_uncorrected 3 5 6\n0.throttle 4 4 0")
    [gpu] = summary["gpus"]
    assert (gpu["busy_percent"], gpu["temperature_c"], gpu["throttled"]) == (40, 50, {})
    assert (gpu["ecc"]["uncorrected"], gpu["ecc"]["new_uncorrected"]) == (6, 1)
    assert gpu["samples"] >= 3


@pytest.mark.fault("gpu-lost")
def test_a_lost_gpu_leaves_the_others(nvml: StandIn, tmp_path: Path) -> None:
    settings = "devices 3\n1.memory_used 1000000000 1000000000 !15"
    (running, summary), errors = nvml.run(RUN, settings)
    assert running
    assert_seen("gpu-lost", errors)
    assert errors.count("is lost (GPU is lost)") == 1 and "GPU 1" in errors and "Xid" in errors
    assert [gpu["lost"] for gpu in summary["gpus"]] == [False, True, False]
    assert [row["index"] for row in rows(tmp_path)].count("1") == summary["gpus"][1]["samples"] == 2
    assert summary["gpus"][2]["samples"] >= 6
    assert nvml.asked("memory_used", "1") == 3


def test_when_all_are_lost_it_ends(nvml: StandIn) -> None:
    (running, summary), errors = nvml.run(RUN, "devices 2\n0.power 9000 !15\n1.power 9000 !16")
    assert not running
    assert errors.count("is lost (GPU") == 2 and "all its GPUs are lost" in errors
    assert [gpu["samples"] for gpu in summary["gpus"]] == [1, 1]


@pytest.mark.parametrize("error", [1, 9, 999])
def test_a_driver_that_goes_away_ends_it_in_one_line(nvml: StandIn, tmp_path: Path, error: int) -> None:
    (running, summary), errors = nvml.run(RUN, f"devices 2\ngone 100 {error}")
    assert not running
    assert errors.count("\n") == 1 and "no longer answers" in errors and "nvidia-smi" in errors
    assert summary["gpus"][0]["samples"] >= 1
    assert len(rows(tmp_path)) == sum(gpu["samples"] for gpu in summary["gpus"])


COUNTERS = ("memory_used", "power", "power_limit", "temperature", "sm_clock", "throttle", "ecc_corrected",
            "ecc_uncorrected", "processes", "busy", "pcie_tx", "nvlink_tx")  # fmt: skip


def test_a_gpu_without_any_answer_is_passed_over_for_once(nvml: StandIn, tmp_path: Path) -> None:
    settings = "devices 2\n" + "".join(f"1.{name} 1 !999 1\n" for name in COUNTERS)
    (running, summary), errors = nvml.run(RUN, settings)
    assert running and errors == ""
    # processes and the clocks ask more than once a sample, so how often it fails is not exactly known
    assert summary["gpus"][0]["samples"] >= 6 > summary["gpus"][0]["samples"] - summary["gpus"][1]["samples"]


def test_the_only_gpu_without_any_answer_is_asked_again(nvml: StandIn) -> None:
    (running, summary), errors = nvml.run(RUN, "devices 1\n" + "".join(f"0.{name} 1 !999 1\n" for name in COUNTERS))
    assert running and errors == ""
    assert summary["gpus"][0]["samples"] >= 5


def test_a_failure_in_the_thread_is_told_once_and_goes_no_further(nvml: StandIn) -> None:
    code = MONITOR + """
def on_sample(samples):
    seen.append(samples)
    if len(seen) == 2:
        raise KeyError("mine")
gpus = monitor(None, on_sample)
gpus.start()
wait(lambda: not gpus.is_running)
tell(gpus.stop()["gpus"][0]["samples"])
"""  # fmt: skip
    told, errors = nvml.run(code)
    assert told == 2
    assert errors == "warning: the GPU monitor stops: KeyError: 'mine'\n"


def test_a_full_disk_ends_it(nvml: StandIn, tmp_path: Path) -> None:
    code = (
        MONITOR
        + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
gpus = monitor()
assert gpus.start() is None
wait(lambda: not gpus.is_running)
tell(gpus.stop()["gpus"][0]["samples"])
"""
    )
    told, errors = nvml.run(code)
    assert told > 2
    assert errors == "warning: the GPU monitor stops: gpu.csv: cannot be written: File too large\n"
    assert (tmp_path / "gpu.csv").stat().st_size == 1500  # the torn line that the next start cuts off


def test_stopping_does_not_wait_for_the_next_sample(nvml: StandIn) -> None:
    code = """
gpus = GpuMonitor(None, interval_s=3600)
assert gpus.start() is None
assert gpus.start() is None  # it runs already
while not gpus.stop()["gpus"][0]["samples"]:
    gpus.start()
first = gpus.stop()
tell([gpus.is_running, first == gpus.stop()])
"""
    assert nvml.run(code)[0] == [False, True]


def test_as_a_context_and_without_a_library(nvml: StandIn) -> None:
    code = """
with GpuMonitor(Path("gpu.csv")) as gpus:
    running = gpus.is_running
tell([running, gpus.is_running, gpus.stop(), Path("gpu.csv").exists()])
"""
    (during, after, _, exists), errors = nvml.run(code)
    assert (during, after, exists, errors) == (True, False, True, "")
    told, errors = nvml.run("Path('gpu.csv').unlink()\n" + code, library="none")
    assert told == [False, False, {"interval_s": 1.0, "gpus": []}, False]
    assert errors.startswith("warning: no GPU monitor: no NVIDIA driver here")


def test_only_the_gpus_that_are_asked_for(nvml: StandIn, tmp_path: Path) -> None:
    code = MONITOR + """
gpus = monitor(uuids=["GPU-cc", "aa"])
gpus.start()
wait(lambda: len(seen) >= 2)
tell([gpu["uuid"] for gpu in gpus.stop()["gpus"]])
"""  # fmt: skip
    told, _ = nvml.run(code, "devices 3\n0.uuid GPU-aa\n1.uuid GPU-bb\n2.uuid GPU-cc", CUDA_VISIBLE_DEVICES="1")
    assert told == ["GPU-cc", "GPU-aa"]
    assert [row["index"] for row in rows(tmp_path)[:2]] == ["2", "0"]


def test_a_resumed_run_goes_on_in_the_file(nvml: StandIn, tmp_path: Path) -> None:
    (_, first), _ = nvml.run(RUN)
    path = tmp_path / "gpu.csv"
    with path.open("a") as file:
        file.write("2026-01-01T00:00:00.000+00:00,GPU-0000")  # killed while it wrote
    (_, second), errors = nvml.run(RUN)
    assert errors == ""
    text = path.read_text()
    assert text.count("time,uuid") == 1 and text.endswith("\n")
    assert len(rows(tmp_path)) == first["gpus"][0]["samples"] + second["gpus"][0]["samples"]
    assert all(None not in row.values() for row in rows(tmp_path))


def test_a_file_that_cannot_be_written_is_a_reason(nvml: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "notes.csv").write_text("what I saw\nand more")
    code = MONITOR + "tell([monitor(path).start() for path in ('file/gpu.csv', 'notes.csv', '.')])"
    told, errors = nvml.run(code)
    assert "file/gpu.csv: cannot be written" in told[0]
    assert "notes.csv: " in told[1] and "is no gpu.csv" in told[1] and "move it away" in told[1]
    assert ".: cannot be written" in told[2]
    assert (tmp_path / "notes.csv").read_text() == "what I saw\nand more"
    assert errors == ""


HEADER = ",".join(COLUMNS) + "\n"
ROW = Sample("GPU-1", "0", busy_percent=50)


@pytest.mark.parametrize(
    "before, kept",
    [
        ("", ""),
        (HEADER[:10], ""),
        (HEADER[:-1], ""),
        (HEADER, ""),
        (HEADER + "x" * 10000, ""),
        (HEADER + "a\n" + "b" * 9000, "a\n"),
        (HEADER + "a\nb\n", "a\nb\n"),
    ],
)
def test_a_torn_line_is_cut_off(tmp_path: Path, before: str, kept: str) -> None:
    path = tmp_path / "deep" / "gpu.csv"
    path.parent.mkdir()
    path.write_text(before)
    table = GpuCsv(path)
    table.write([ROW])
    table.close()
    start, last = path.read_text()[: -len("\n")].rsplit("\n", 1)
    assert start + "\n" == HEADER + kept
    assert last.split(",")[1:4] == ["GPU-1", "0", "50"]


@pytest.mark.parametrize("text", ["time,uuid\n", "a", "\n", HEADER.replace("power", "force"), "\x00\xff"])
def test_another_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="move it away"):
        GpuCsv(path)
    assert path.read_bytes() == text.encode("latin-1")


def test_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    values: dict[str, Any] = {"busy_percent": 100, "memory_used_gb": 79.12345, "power_w": 1000.0, "throttle": ()}
    table = GpuCsv(tmp_path / "gpu.csv")
    table.write([Sample("MIG-1", "0:1", **values), Sample("GPU-2", "1", throttle=("power", "thermal"))])
    table.close()
    one, two = read_gpu_csv(tmp_path / "gpu.csv")
    assert (one["index"], one["busy_percent"], one["memory_used_gb"], one["power_w"]) == ("0:1", 100, 79.123, 1000)
    assert (one["throttle"], two["throttle"], two["power_w"]) == ((), ("power", "thermal"), None)
    assert one["time"] == two["time"] and one["time"].utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    "due, now, expected",
    [
        (10.0, 10.0, 11.0),  # in time
        (10.0, 10.4, 11.0),  # a slow sample does not put off the next
        (10.0, 11.0, 11.0),
        (10.0, 12.5, 13.0),  # two were missed
    ],
)
def test_samples_stay_on_the_grid(due: float, now: float, expected: float) -> None:
    assert next_sample_time(due, now, 1.0) == expected


def test_stop_without_start() -> None:
    assert GpuMonitor(None).stop() == {"interval_s": 1.0, "gpus": []}
