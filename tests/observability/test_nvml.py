"""What is read of a GPU, and of which, against a stand-in for the driver's library."""

from __future__ import annotations

from statistics import median

import pytest
from faults.catalogue import assert_seen
from stand_in_nvml import StandIn

from fusionseg.observability.gpu.samples import throttle_names

SAMPLES = """
from dataclasses import asdict
gpus = Nvml().gpus()
tell([[asdict(gpu.sample()) for gpu in gpus] for _ in range(int(os.environ.get("TIMES", 1)))])
"""
CHOSEN = """
def indices(uuids=None):
    try:
        return [gpu.index for gpu in nvml.gpus(uuids)]
    except NvmlError as error:
        return str(error)
nvml = Nvml()
"""


def test_units(nvml: StandIn) -> None:
    settings = """
0.busy 63
0.memory_busy 31
0.memory_used 12345000000
0.memory_total 80000000000
0.power 301500
0.power_limit 400000
0.temperature 71
0.sm_clock 1410
0.memory_clock 1593
0.throttle 5
0.pcie_tx 1500
0.pcie_rx 2500000
0.ecc_corrected 3
0.ecc_uncorrected 1
0.processes 4
"""
    [[sample]], errors = nvml.run(SAMPLES, settings)
    assert sample == {
        "uuid": "GPU-00000000-0000-0000-0000-000000000000",
        "index": "0",
        "busy_percent": 63,
        "memory_busy_percent": 31,
        "memory_used_gb": 12.345,
        "memory_total_gb": 80,
        "power_w": 301.5,
        "power_limit_w": 400,
        "temperature_c": 71,
        "sm_clock_mhz": 1410,
        "memory_clock_mhz": 1593,
        "throttle": ["power"],
        "pcie_tx_mb_per_s": 1.5,
        "pcie_rx_mb_per_s": 2500,
        "nvlink_tx_mb_per_s": None,  # a rate needs two
        "nvlink_rx_mb_per_s": None,
        "ecc_corrected": 3,
        "ecc_uncorrected": 1,
        "processes": 4,
    }
    assert errors == ""


def test_an_old_driver_is_asked_by_its_own_functions(nvml: StandIn) -> None:
    settings = "0.memory_used 5000000000\n0.memory_reserved 1000000000\n0.temperature 66\n0.throttle 32\n0.processes 2"
    [[new]], _ = nvml.run(SAMPLES, settings)
    [[old], _, _], errors = nvml.run(SAMPLES, settings, "old", TIMES="3")
    assert new["memory_used_gb"] == 5 and old["memory_used_gb"] == 6  # it counts the driver's own memory in
    for sample in (new, old):
        assert (sample["temperature_c"], sample["throttle"], sample["processes"]) == (66, ["thermal"], 2)
    assert old["busy_percent"] == 50 and old["nvlink_tx_mb_per_s"] is None
    assert errors == ""


@pytest.mark.parametrize("error", [2, 3, 4, 13, 25])
def test_a_counter_that_the_card_lacks_is_empty_and_not_asked_for_again(nvml: StandIn, error: int) -> None:
    settings = f"devices 2\n0.power !{error}\n0.ecc_corrected !{error}\n0.nvlink_tx !{error}\n0.busy !{error}"
    rounds, errors = nvml.run(SAMPLES, settings, TIMES="3")
    for lacking, other in rounds:
        assert [lacking[name] for name in ("power_w", "ecc_corrected", "nvlink_tx_mb_per_s", "busy_percent")] == [
            None
        ] * 4
        assert (lacking["power_limit_w"], lacking["ecc_uncorrected"], lacking["temperature_c"]) == (300, 0, 60)
        assert (other["power_w"], other["busy_percent"]) == (100, 50)
    assert [nvml.asked(name, "0") for name in ("power", "ecc_corrected", "nvlink_tx", "busy")] == [1] * 4
    assert nvml.asked("power", "1") == 3
    assert errors == ""


@pytest.mark.parametrize("error", [10, 20, 999])
def test_a_counter_that_fails_for_once_is_asked_for_again(nvml: StandIn, error: int) -> None:
    rounds, _ = nvml.run(SAMPLES, f"0.power 80000 !{error} 90000", TIMES="3")
    assert [sample["power_w"] for [sample] in rounds] == [80, None, 90]


def test_nvlink_is_a_rate(nvml: StandIn) -> None:
    code = """
gpu = Nvml().gpus()[0]
rates = []
for _ in range(6):
    sample = gpu.sample()
    rates.append([sample.nvlink_tx_mb_per_s, sample.nvlink_rx_mb_per_s])
    time.sleep(0.1)
tell(rates)
"""
    rates, _ = nvml.run(code, "0.nvlink_tx 100000000\n0.nvlink_rx 50000000")
    assert rates[0] == [None, None]
    sent, received = zip(*rates[1:], strict=True)
    # KiB become MB; the median, because the process may be held up between the counter and the clock
    assert median(sent) == pytest.approx(102400, rel=0.01)
    assert median(received) == pytest.approx(51200, rel=0.01)


def test_an_nvlink_counter_that_was_reset_gives_no_negative_rate(nvml: StandIn) -> None:
    rounds, _ = nvml.run(SAMPLES, "0.nvlink_tx 0 -1000000", TIMES="2")
    assert rounds[1][0]["nvlink_tx_mb_per_s"] is None


@pytest.mark.parametrize(
    "mask, names",
    [
        (0, ()),
        (1, ()),  # idle
        (0x4 | 0x20, ("power", "thermal")),
        (0x8 | 0x40, ("hw_slowdown", "hw_thermal")),
        (0x8 | 0x80, ("hw_slowdown", "power_brake")),
        (0x2 | 0x1, ("app_clocks",)),
        (1 << 40, ("other",)),
    ],
)
def test_throttle_reasons(mask: int, names: tuple[str, ...]) -> None:
    assert throttle_names(mask) == names


def test_by_uuid_in_any_order_and_spelling(nvml: StandIn) -> None:
    settings = "devices 4\n0.handle !4\n1.uuid GPU-aa\n2.uuid GPU-bb\n3.uuid GPU-cc"
    code = (
        CHOSEN
        + """
tell([indices(u) for u in (["cc", "GPU-aa"], ["BB"], ["aa", "aa"], ["bb", "dd"], ["dd"], [])] + [indices()])
"""
    )
    chosen, errors = nvml.run(code, settings, CUDA_VISIBLE_DEVICES="1,2")
    assert chosen[:4] == [["3", "1"], ["2"], ["1"], ["2"]]
    assert "no GPU dd" in chosen[4] and "2 GPU-bb" in chosen[4]
    assert "no GPU" in chosen[5]
    # The first card is denied to this process: CUDA's 1 and 2 are the second and third of the others.
    assert chosen[6] == ["2", "3"]
    assert errors.count("dd") == 1 and "cannot be monitored" not in errors


def test_cuda_visible_devices(nvml: StandIn) -> None:
    settings = "devices 4\n0.uuid GPU-aa11\n1.uuid GPU-aa22\n2.uuid GPU-bb\n3.uuid GPU-cc"
    wanted = {
        "0": ["0"],
        "3,1": ["3", "1"],
        " 2 , 0 ": ["2", "0"],
        "0,2,-1,1": ["0", "2"],
        "1,9,2": ["1"],
        "1gpu,2": ["1", "2"],
        "GPU-bb,GPU-aa2": ["2", "1"],
        "GPU-bb,GPU-aa": ["2"],  # the prefix of two
        "GPU-bb,0": ["2"],
        "0,GPU-bb": ["0"],
        "2,": ["2"],
    }
    refused = {
        "": "is empty",
        "-1": "is no GPU of this machine",
        "NoDevFiles": "is no GPU of this machine",
        "GPU-a": "is no GPU of this machine",
        "7": "is no GPU of this machine",
        "MIG-cc": "is no GPU of this machine",
        "1,1": "twice",
        "GPU-cc,GPU-c": "twice",
    }
    code = (
        CHOSEN
        + f"""
found = {{}}
for text in {[*wanted, *refused]!r}:
    os.environ["CUDA_VISIBLE_DEVICES"] = text
    found[text] = indices()
del os.environ["CUDA_VISIBLE_DEVICES"]
tell([found, indices()])
"""
    )
    (found, unset), errors = nvml.run(code, settings)
    assert {text: found[text] for text in wanted} == wanted
    for text, reason in refused.items():
        assert reason in found[text], text
    assert unset == ["0", "1", "2", "3"]
    assert "1,9,2: 9 is no GPU" in errors
    assert "CUDA_DEVICE_ORDER" not in errors


def test_numbers_are_doubtful_where_the_cards_differ(nvml: StandIn) -> None:
    settings = "devices 2\n0.name One card\n1.name Another"
    code = CHOSEN + "tell(indices())"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in nvml.run(code, settings, CUDA_VISIBLE_DEVICES="1")[1]
    assert nvml.run(code, settings, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID") == (["1"], "")


MIG = """
devices 2
0.uuid GPU-card
0.mig 2
0.power 123000
0.memory_used 9000000000
0:1.uuid MIG-one
0:1.memory_used 1000000000
0:1.memory_total 5000000000
0:2.uuid MIG-two
0:2.memory_used 2000000000
0:2.processes 3
"""


def test_mig_instances_stand_for_their_card(nvml: StandIn) -> None:
    [[one, two, other]], errors = nvml.run(SAMPLES, MIG)
    assert [sample["uuid"][:7] for sample in (one, two, other)] == ["MIG-one", "MIG-two", "GPU-000"]
    assert [sample["index"] for sample in (one, two, other)] == ["0:1", "0:2", "1"]
    assert (one["memory_used_gb"], one["memory_total_gb"], two["memory_used_gb"]) == (1, 5, 2)
    assert (one["processes"], two["processes"]) == (1, 3)
    for sample in (one, two):
        assert (sample["power_w"], sample["temperature_c"], sample["sm_clock_mhz"]) == (123, 60, 1500)
        assert sample["busy_percent"] is None and sample["pcie_tx_mb_per_s"] is None
    assert other["busy_percent"] == 50
    assert nvml.asked("busy", "0:1") == nvml.asked("memory_used", "0") == 0
    assert errors == ""


def test_mig_instances_by_name(nvml: StandIn) -> None:
    code = (
        CHOSEN
        + """
told = [indices(u) for u in (["two"], ["MIG-one"], ["card"], ["GPU-card", "two"])]
for text in ("MIG-two,MIG-one", "MIG-t", "MIG-GPU-card/8/0", "GPU-card", "0", "MIG-one,GPU-card", "MIG-none"):
    os.environ["CUDA_VISIBLE_DEVICES"] = text
    told.append(indices())
tell(told)
"""
    )
    told, _ = nvml.run(code, MIG)
    assert told[:4] == [["0:2"], ["0:1"], ["0:1", "0:2"], ["0:1", "0:2"]]
    assert told[4:10] == [["0:2", "0:1"], ["0:2"], ["0:2"], ["0:1", "0:2"], ["0:1", "0:2"], ["0:1"]]
    assert "is no GPU of this machine" in told[10] and "MIG-one" in told[10]


def test_mig_without_an_instance(nvml: StandIn) -> None:
    told, _ = nvml.run(CHOSEN + "tell(indices())", "devices 1\n0.mig 0")
    assert "no MIG instance" in told and "nvidia-smi mig" in told


OPEN = """
try:
    tell([gpu.index for gpu in Nvml().gpus()])
except NvmlError as error:
    tell(str(error))
"""


@pytest.mark.parametrize(
    "settings, library, reason",
    [
        pytest.param("", "none", "libnvidia", marks=pytest.mark.fault("gpu-monitor-missing")),
        ("init 9", "new", "driver is not loaded"),
        ("init 18", "new", "reload its modules"),
        ("init 4", "new", "ask the administrators"),
        ("init 999", "new", "NVML does not start (Unknown Error)"),
        ("devices 0", "new", "lists no GPU"),
    ],
)
def test_why_there_is_nothing_to_read(nvml: StandIn, settings: str, library: str, reason: str) -> None:
    told, errors = nvml.run(OPEN, settings, library)
    assert reason in told and "\n" not in told
    if library == "none":
        assert_seen("gpu-monitor-missing", told)
    assert errors == ""


def test_a_card_that_cannot_be_opened_is_left_out(nvml: StandIn) -> None:
    told, errors = nvml.run(OPEN, "devices 3\n1.handle !15")
    assert told == ["0", "2"]
    assert "GPU 1 cannot be monitored" in errors


def test_without_the_package(nvml: StandIn) -> None:
    told, _ = nvml.run("sys.modules['pynvml'] = None\n" + OPEN)
    assert "pip install nvidia-ml-py" in told
