"""Which GPUs are meant: by the UUIDs that torch gives, or by CUDA_VISIBLE_DEVICES; NVML itself knows neither."""

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
_WHY_NOT = {
    4: "NVML may not be used by this account: ask the administrators",
    9: "the NVIDIA driver is not loaded: look at nvidia-smi and dmesg",
    12: _NO_LIBRARY,
    18: "the NVIDIA driver was updated under the running system: reboot, or reload its modules",
}


@dataclass
class _Instance:
    """A MIG instance."""

    gpu: Gpu
    names: list[str]
    """By what CUDA_VISIBLE_DEVICES may call it: its UUID and, as before driver 470, MIG-<GPU>/<instance>/<compute>."""


@dataclass
class _Card:
    """A GPU of this machine that this process may use."""

    gpu: Gpu
    has_mig: bool = False
    instances: list[_Instance] = field(default_factory=list)

    @property
    def units(self) -> list[Gpu]:
        """What can be computed on: itself or, with MIG enabled, its instances."""
        return [instance.gpu for instance in self.instances] if self.has_mig else [self.gpu]


class Nvml:
    """The NVML library, open until `close`."""

    def __init__(self) -> None:
        """Raises:
        NvmlError: there is no library, no driver, or they do not work.
        """
        try:
            import pynvml
        except ImportError:
            raise NvmlError("the package nvidia-ml-py is missing: pip install nvidia-ml-py") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlError(_WHY_NOT.get(error.value, f"NVML does not start ({error}): look at nvidia-smi")) from None

    def close(self) -> None:
        """Give the library back; also when the driver is gone."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def gpus(self, uuids: Sequence[str] | None = None) -> list[Gpu]:
        """The GPUs with these UUIDs, in this order; without them, those that CUDA may use.

        Args:
            uuids: with or without GPU- or MIG- in front.

        Raises:
            NvmlError: there are none.
        """
        try:
            cards = self._cards()
        except self._nvml.NVMLError as error:
            raise NvmlError(_WHY_NOT.get(error.value, f"NVML lists no GPUs ({error}): look at nvidia-smi")) from None
        if not cards:
            raise NvmlError("the NVIDIA driver shows no GPU; in a container: start it with --gpus all or --nv")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if uuids is not None:
            found = _by_uuid(cards, uuids)
        elif visible is not None:
            found = _by_cuda(cards, visible)
        else:
            found = _units(cards)
        if not found:
            raise NvmlError("MIG is enabled here, and there is no instance: make one (nvidia-smi mig -cgi ... -C)")
        return list({gpu.uuid: gpu for gpu in found}.values())

    def _cards(self) -> list[_Card]:
        """The cards that this process may use, in NVML's order: what a scheduler denies to it, CUDA does not count."""
        nvml, cards = self._nvml, []
        for number in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                uuid = nvml.nvmlDeviceGetUUID(handle)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_NO_PERMISSION:
                    log.warning("GPU %d cannot be monitored (%s): look at nvidia-smi and dmesg", number, error)
                continue
            card = _Card(Gpu(nvml, handle, uuid, str(number), self._name(handle, "GPU")))
            with suppress(nvml.NVMLError):  # most cards have no MIG, and old drivers do not know of it
                card.has_mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
            if card.has_mig:
                card.instances = self._instances(handle, card.gpu)
            cards.append(card)
        return cards

    def _instances(self, card: Any, gpu: Gpu) -> list[_Instance]:
        nvml, instances = self._nvml, []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
                uuid = nvml.nvmlDeviceGetUUID(handle)
            except nvml.NVMLError:  # the numbers have gaps
                continue
            names = [uuid]
            with suppress(nvml.NVMLError):
                numbers = nvml.nvmlDeviceGetGpuInstanceId(handle), nvml.nvmlDeviceGetComputeInstanceId(handle)
                names.append(f"MIG-{gpu.uuid}/{numbers[0]}/{numbers[1]}")
            name = self._name(handle, f"{gpu.name} MIG")
            instances.append(_Instance(Gpu(nvml, handle, uuid, f"{gpu.index}:{number}", name, parent=card), names))
        return instances

    def _name(self, handle: Any, default: str) -> str:
        try:
            return str(self._nvml.nvmlDeviceGetName(handle))
        except self._nvml.NVMLError:
            return default


def _units(cards: Iterable[_Card]) -> list[Gpu]:
    return [gpu for card in cards for gpu in card.units]


def _bare(uuid: str) -> str:
    """torch gives UUIDs without the prefix, so whether it is a card's or an instance's does not show."""
    return re.sub("^(GPU|MIG)-", "", uuid).lower()


def _by_uuid(cards: list[_Card], uuids: Sequence[str]) -> list[Gpu]:
    known = {_bare(gpu.uuid): [gpu] for gpu in _units(cards)} | {_bare(card.gpu.uuid): card.units for card in cards}
    missing = [uuid for uuid in uuids if _bare(uuid) not in known]
    found = [gpu for uuid in uuids for gpu in known.get(_bare(uuid), [])]
    if not uuids:
        raise NvmlError("no GPU is used")
    if missing and not found:
        raise NvmlError(f"NVML knows no GPU {', '.join(missing)}; it has {_listed(cards)}")
    if missing:
        log.warning("NVML knows no GPU %s: it is not monitored", ", ".join(missing))
    return found


def _by_cuda(cards: list[_Card], text: str) -> list[Gpu]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: entries of one kind, and the first invalid one ends the list."""
    if not text.strip():
        raise NvmlError("CUDA_VISIBLE_DEVICES is empty: this process was given no GPU")
    entries = [entry.strip() for entry in text.split(",")]
    chosen: list[tuple[str, list[Gpu]]] = []
    for entry in entries:
        if entry.startswith("GPU-") and entries[0].startswith("GPU-"):
            fits = [(card.gpu.uuid, card.units) for card in cards if card.gpu.uuid.startswith(entry)]
        elif entry.startswith("MIG-") and entries[0].startswith("MIG-"):
            instances = [instance for card in cards for instance in card.instances]
            near = [one for one in instances if any(name.startswith(entry) for name in one.names)]
            fits = [(one.gpu.uuid, [one.gpu]) for one in near]
        else:
            # CUDA reads as far as there are digits: 1gpu is 1
            digits = re.match(r"\+?(\d+)", entry) if not entries[0].startswith(("GPU-", "MIG-")) else None
            number = int(digits[1]) if digits else len(cards)
            fits = [(card.gpu.uuid, card.units) for card in cards[number : number + 1]]
        if len(fits) != 1:
            if not chosen:
                raise NvmlError(f"CUDA_VISIBLE_DEVICES={text} begins with no GPU of this machine: {_listed(cards)}")
            log.warning(
                "CUDA_VISIBLE_DEVICES=%s: CUDA stops at %s, which is no GPU here", text, entry or "the empty entry"
            )
            break
        if fits[0] in chosen:
            raise NvmlError(f"CUDA_VISIBLE_DEVICES={text} names a GPU twice: CUDA then takes none")
        chosen += fits
    if not entries[0].startswith(("GPU-", "MIG-")):
        _warn_of_order(cards)
    return [gpu for _, units in chosen for gpu in units]


def _warn_of_order(cards: list[_Card]) -> None:
    """CUDA's numbers are NVML's only if it counts by PCI bus, or if all cards are alike."""
    if len({card.gpu.name for card in cards}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        log.warning(
            "the GPUs here differ, and CUDA may number them otherwise than NVML: set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )


def _listed(cards: list[_Card]) -> str:
    gpus = {gpu.uuid: gpu for gpu in [*(card.gpu for card in cards), *_units(cards)]}
    return ", ".join(f"{gpu.index} {uuid}" for uuid, gpu in gpus.items())
