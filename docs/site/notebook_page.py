"""A notebook as a Markdown page: its text, code, printed outputs and pictures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any


def render(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Render a notebook as Markdown, with its pictures by file name.

    Args:
        notebook: a file in the format of Jupyter, version 4, with the outputs of its cells.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif (png := _png(output)) is not None:
                name = f"{notebook.stem}_{len(pictures) + 1}.png"
                pictures[name] = png
                parts.append(f"![output of the code above]({name})")
    return "\n\n".join(parts) + "\n", pictures


def _png(output: dict[str, Any]) -> bytes | None:
    text = output.get("data", {}).get("image/png")
    return None if text is None else base64.b64decode("".join(text))
