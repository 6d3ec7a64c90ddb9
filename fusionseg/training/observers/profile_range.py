"""A profile of some steps: by torch's profiler, Nsight Systems, or the history of the GPU's memory."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

import torch

from fusionseg.config import ProfileConfig
from fusionseg.distributed.world import World
from fusionseg.observability.profiles.summary import summarise
from fusionseg.observability.profiles.timeline import read_torch_trace
from fusionseg.observability.ranges import phase_timer
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import whole_file, write_json

log = logging.getLogger("fusionseg")


def check_profile(config: ProfileConfig, device: torch.device) -> None:
    """Refuse a profile that needs a GPU in a run without one.

    Raises:
        UserError: the tool profiles a GPU, and the run is on the CPU.
    """
    if config.tool != "torch" and device.type != "cuda":
        raise UserError(
            f"profile.with: {config.tool} profiles a GPU, and this run is on the CPU: set profile.with=torch, or"
            " device=cuda"
        )


class ProfileRange:
    """Profiles the steps from `first` up to but not including `end`, counted from 0, on the configured ranks.

    Other steps are not slowed down.
    """

    def __init__(self, config: ProfileConfig, world: World, folder: Path) -> None:
        """Args:
        config: the `profile` section.
        world: the ranks.
        folder: the folder of the files: `trace_rank0.json.gz` and `summary_rank0.json`, or `memory_rank0.pickle`.
        """
        profiled = config.ranks == "all" or world.is_rank_zero
        self.first, self.end = config.steps if profiled and config.steps is not None else (-1, -1)
        self.tool = config.tool
        self.world = world
        self.folder = folder
        self._open = False
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> ProfileRange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as second:
            if error is None:
                raise
            # After an error of the device, ending the profile fails too. The first error is the one to report.
            log.warning("profile: could not be ended: %s", second)

    def before(self, step: int) -> None:
        """Start the profile if it begins with this step. Call it before each step, counted from 0."""
        if self.first <= step < self.end and not self._open:
            self._open = True
            log.info("profile: %s, steps %d to %d", self.tool, step + 1, self.end)
            with phase_timer().measure("log"):
                self._wait_for_device()
                self._start()

    def after(self, step: int) -> None:
        """End the profile after its last step. Call it after each step with the number of steps done."""
        if self._open and step >= self.end:
            self.close()

    def close(self) -> None:
        """End the profile, before its last step if necessary, and write its files."""
        if not self._open:
            return
        self._open = False
        self.end = -1  # a start of the run has one profile
        with phase_timer().measure("log"):
            self._wait_for_device()
            try:
                self._stop()
            except (OSError, UserError) as error:  # a full disk, or a trace that a full disk has cut off
                log.warning("profile: not written: %s", error)

    def _wait_for_device(self) -> None:
        """Wait for the device, so that the profile holds the work of its own steps only."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def _start(self) -> None:
        if self.tool == "nsys":
            torch.cuda.profiler.start()
        elif self.tool == "memory":
            torch.cuda.memory._record_memory_history(max_entries=200_000)
        else:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.world.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()

    def _stop(self) -> None:
        rank = self.world.rank
        if self.tool == "nsys":
            torch.cuda.profiler.stop()
        elif self.tool == "memory":
            path = self.folder / f"memory_rank{rank}.pickle"
            with whole_file(path) as temporary:
                torch.cuda.memory._dump_snapshot(str(temporary))
            torch.cuda.memory._record_memory_history(enabled=None)
            log.info("profile: %s (open it at https://pytorch.org/memory_viz)", path)
        else:
            assert self._profiler is not None
            self._profiler.stop()
            path = self.folder / f"trace_rank{rank}.json.gz"
            with whole_file(path) as temporary:
                self._profiler.export_chrome_trace(str(temporary))
            self._profiler = None
            write_json(self.folder / f"summary_rank{rank}.json", summarise(read_torch_trace(path)))
            log.info(
                "profile: %s (open it at https://ui.perfetto.dev; as a table: python profiling/report.py %s)",
                path,
                self.folder.parent,
            )
