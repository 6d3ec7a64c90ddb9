"""Selection of GPUs by UUID or by CUDA_VISIBLE_DEVICES, which NVML itself ignores."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fusionseg.observability.gpu.nvml import Gpu, NvmlError

log = logging.getLogger("fusionseg")

_NO_LIBRARY = (
    "no NVIDIA driver here (libnvidia-ml.so.1 is not found); in a container: start it with --gpus all or --nv,"
    " and NVIDIA_DRIVER_CAPABILITIES=compute,utility"
)
_REASONS = {
    4: "this account has no permission to use NVML: ask the administrators",
    9: "the NVIDIA driver is not loaded: look at nvidia-smi and dmesg",
    12: _NO_LIBRARY,
    18: "the NVIDIA driver was updated while the system runs: reboot, or reload its modules",
}
"""Messages by NVML return code."""


@dataclass
class _Instance:
    """A MIG instance."""

    gpu: Gpu
    names: list[str]
    """Names in CUDA_VISIBLE_DEVICES: the UUID and, for drivers before 470, MIG-<GPU>/<instance>/<compute instance>."""


@dataclass
class _Card:
    """A GPU of this machine that this process has permission to use."""

    gpu: Gpu
    has_mig: bool = False
    instances: list[_Instance] = field(default_factory=list)

    @property
    def compute_devices(self) -> list[Gpu]:
        """The card itself or, with MIG enabled, its instances."""
        return [instance.gpu for instance in self.instances] if self.has_mig else [self.gpu]


class Nvml:
    """The NVML library. It stays loaded until `close`."""

    def __init__(self) -> None:
        """Raises:
        NvmlError: the Python package, the library or the driver is missing or does not work.
        """
        try:
            import pynvml
        except ImportError:
            raise NvmlError("the package nvidia-ml-py is missing: pip install nvidia-ml-py") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlError(_REASONS.get(error.value, f"NVML does not start ({error}): look at nvidia-smi")) from None

    def close(self) -> None:
        """Unload the library; allowed also when the driver is gone."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def gpus(self, uuids: Sequence[str] | None = None) -> list[Gpu]:
        """List the GPUs with these UUIDs in their order, or the GPUs that CUDA would use.

        Args:
            uuids: with or without the prefix GPU- or MIG-; None takes CUDA_VISIBLE_DEVICES, or all GPUs if it is unset.

        Raises:
            NvmlError: no GPU fits, or NVML cannot list them.
        """
        try:
            cards = self._cards()
        except self._nvml.NVMLError as error:
            raise NvmlError(_REASONS.get(error.value, f"NVML lists no GPUs ({error}): look at nvidia-smi")) from None
        if not cards:
            raise NvmlError("the NVIDIA driver lists no GPU; in a container: start it with --gpus all or --nv")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if uuids is not None:
            found = _select_by_uuid(cards, uuids)
        elif visible is not None:
            found = _select_by_cuda(cards, visible)
        else:
            found = _compute_devices(cards)
        if not found:
            raise NvmlError("MIG is enabled, but there is no MIG instance: create one (nvidia-smi mig -cgi ... -C)")
        return list({gpu.uuid: gpu for gpu in found}.values())

    def _cards(self) -> list[_Card]:
        """List the cards in NVML's order, without those that a scheduler denies: CUDA does not count these either."""
        nvml, cards = self._nvml, []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = nvml.nvmlDeviceGetUUID(handle)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_NO_PERMISSION:
                    log.warning("GPU %d cannot be monitored (%s): look at nvidia-smi and dmesg", index, error)
                continue
            card = _Card(Gpu(nvml, handle, uuid, str(index), self._name(handle, "GPU")))
            with suppress(nvml.NVMLError):  # an error means that the card or the driver does not support MIG
                card.has_mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
            if card.has_mig:
                card.instances = self._instances(handle, card.gpu)
            cards.append(card)
        return cards

    def _instances(self, card: Any, gpu: Gpu) -> list[_Instance]:
        nvml, instances = self._nvml, []
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
                uuid = nvml.nvmlDeviceGetUUID(handle)
            except nvml.NVMLError:  # not every index is in use
                continue
            names = [uuid]
            with suppress(nvml.NVMLError):
                ids = nvml.nvmlDeviceGetGpuInstanceId(handle), nvml.nvmlDeviceGetComputeInstanceId(handle)
                names.append(f"MIG-{gpu.uuid}/{ids[0]}/{ids[1]}")
            name = self._name(handle, f"{gpu.name} MIG")
            instances.append(_Instance(Gpu(nvml, handle, uuid, f"{gpu.index}:{index}", name, parent=card), names))
        return instances

    def _name(self, handle: Any, default: str) -> str:
        try:
            return str(self._nvml.nvmlDeviceGetName(handle))
        except self._nvml.NVMLError:
            return default


def _compute_devices(cards: Iterable[_Card]) -> list[Gpu]:
    return [gpu for card in cards for gpu in card.compute_devices]


def _without_prefix(uuid: str) -> str:
    """Remove GPU- or MIG-, because torch gives UUIDs without it."""
    return re.sub("^(GPU|MIG)-", "", uuid).lower()


def _select_by_uuid(cards: list[_Card], uuids: Sequence[str]) -> list[Gpu]:
    known = {_without_prefix(gpu.uuid): [gpu] for gpu in _compute_devices(cards)}
    known |= {_without_prefix(card.gpu.uuid): card.compute_devices for card in cards}
    missing = [uuid for uuid in uuids if _without_prefix(uuid) not in known]
    found = [gpu for uuid in uuids for gpu in known.get(_without_prefix(uuid), [])]
    if not uuids:
        raise NvmlError("this run uses no GPU")
    if missing and not found:
        raise NvmlError(f"NVML finds no GPU {', '.join(missing)}; it finds {_list_gpus(cards)}")
    if missing:
        log.warning("NVML finds no GPU %s: it is not monitored", ", ".join(missing))
    return found


def _select_by_cuda(cards: list[_Card], text: str) -> list[Gpu]:
    """Select as CUDA does: all entries are of the kind of the first, and an invalid entry ends the list.

    Args:
        text: the value of CUDA_VISIBLE_DEVICES.

    Raises:
        NvmlError: no entry is valid, or one GPU is listed twice.
    """
    if not text.strip():
        raise NvmlError("CUDA_VISIBLE_DEVICES is empty: this process was given no GPU")
    entries = [entry.strip() for entry in text.split(",")]
    chosen: list[tuple[str, list[Gpu]]] = []
    for entry in entries:
        if entry.startswith("GPU-") and entries[0].startswith("GPU-"):
            matches = [(card.gpu.uuid, card.compute_devices) for card in cards if card.gpu.uuid.startswith(entry)]
        elif entry.startswith("MIG-") and entries[0].startswith("MIG-"):
            instances = [instance for card in cards for instance in card.instances]
            named = [one for one in instances if any(name.startswith(entry) for name in one.names)]
            matches = [(one.gpu.uuid, [one.gpu]) for one in named]
        else:
            # CUDA reads the leading digits only: "1gpu" is 1.
            digits = re.match(r"\+?(\d+)", entry) if not entries[0].startswith(("GPU-", "MIG-")) else None
            index = int(digits[1]) if digits else len(cards)
            matches = [(card.gpu.uuid, card.compute_devices) for card in cards[index : index + 1]]
        if len(matches) != 1:
            if not chosen:
                raise NvmlError(
                    f"CUDA_VISIBLE_DEVICES={text}: the first entry is no GPU of this machine, which has"
                    f" {_list_gpus(cards)}"
                )
            log.warning(
                "CUDA_VISIBLE_DEVICES=%s: %s is no GPU of this machine; CUDA ignores this entry and those after it",
                text,
                entry or "the empty entry",
            )
            break
        if matches[0] in chosen:
            raise NvmlError(f"CUDA_VISIBLE_DEVICES={text}: a GPU is listed twice, so CUDA uses none; list it once")
        chosen += matches
    if not entries[0].startswith(("GPU-", "MIG-")):
        _warn_about_order(cards)
    return [gpu for _, devices in chosen for gpu in devices]


def _warn_about_order(cards: list[_Card]) -> None:
    """Warn if CUDA and NVML may number the cards differently: unlike cards, not ordered by PCI bus."""
    if len({card.gpu.name for card in cards}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        log.warning(
            "this machine has different GPUs, which CUDA and NVML may number differently: set"
            " CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )


def _list_gpus(cards: list[_Card]) -> str:
    gpus = {gpu.uuid: gpu for gpu in [*(card.gpu for card in cards), *_compute_devices(cards)]}
    return ", ".join(f"{gpu.index} {uuid}" for uuid, gpu in gpus.items())
