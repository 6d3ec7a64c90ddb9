"""NVTX ranges of a process, as a tool such as Nsight Systems receives them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Range:
    """An NVTX range."""

    name: str
    payload: int
    depth: int
    inner: list[Range] = field(default_factory=list)


class NvtxTool:
    """Builds the tool and reads the ranges that it recorded of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared_object = folder / "libtool.so"
        source = Path(__file__).with_name("nvtx_tool.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", self.shared_object, source], check=True)

    def environ(self, process: str = "process") -> dict[str, str]:
        """Return the variables that load the tool into a process, with a name for its records."""
        assert "NVTX_DISABLE" not in os.environ
        return {"NVTX_INJECTION64_PATH": str(self.shared_object), "NVTX_TEST_OUTPUT": str(self.folder / process)}

    def ranges(self, process: str = "process") -> list[Range]:
        """Return all ranges of the domain `fusionseg`, in the order of their starts; assert that all are closed."""
        everything: list[Range] = []
        opened: list[Range] = []
        for line in (self.folder / process).read_text().splitlines():
            domain, action, *rest = line.split(" ", 3)
            assert domain == "fusionseg"
            if action == "push":
                new = Range(rest[1], int(rest[0]), len(opened))
                if opened:
                    opened[-1].inner.append(new)
                everything.append(new)
                opened.append(new)
            else:
                opened.pop()
        assert not opened
        return everything
