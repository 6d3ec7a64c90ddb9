"""Generator of docs/api.md from the docstrings of the public API: python docs/api_reference.py > docs/api.md"""

from __future__ import annotations

import inspect
import re
import textwrap

from fusionseg import api

HEAD = """# The Python API

`import fusionseg` gives these names. All other modules of the package are internal and may change. The import is fast:
torch and MONAI are imported when a name that needs them is used. Each function calls the same code as the command of
its name. A request that cannot be carried out raises `fusionseg.UserError`, with the message that the command prints.

A first hour with them: [first_hour.ipynb](first_hour.ipynb). Networks, losses and other parts of your own:
[extending.md](extending.md).

This page is made from the docstrings: `python docs/api_reference.py > docs/api.md`.
"""
FUNCTIONS = ["load_config", "train", "pretrain", "load_run", "predict", "evaluate", "build_network", "open_dataset"]
FUNCTIONS += ["register_network", "register_loss", "register_optimizer", "register_schedule"]
MEMBERS = ["folder", "config", "records", "curve", "status", "step", "best", "channels", "labels"]
MEMBERS += ["network", "predict", "evaluate"]


def render() -> str:
    """Render the page as Markdown."""
    parts = [HEAD]
    parts += [_function(name, getattr(api, name)) for name in FUNCTIONS]
    parts.append(f"## Run\n\n{_sections(inspect.getdoc(api.Run) or '')}")
    parts += [_member(name) for name in MEMBERS]
    parts.append(f"## UserError, TrainingStopped\n\n{_sections(inspect.getdoc(api.UserError) or '')}")
    parts.append(_sections(inspect.getdoc(api.TrainingStopped) or ""))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _function(name: str, function: object, level: str = "## ", called: str = "fusionseg") -> str:
    title = name if called == "fusionseg" else f"{called}.{name}"
    signature = _signature(f"{called}.{name}", function)
    return f"{level}{title}\n\n```python\n{signature}\n```\n\n{_sections(inspect.getdoc(function) or '')}"


def _member(name: str) -> str:
    member = getattr(api.Run, name, None)
    if member is None:
        text = {"folder": "The run folder, a `pathlib.Path`.", "config": "The resolved configuration."}[name]
        return f"### run.{name}\n\n{text}"
    if isinstance(member, property):
        return f"### run.{name}\n\n{_sections(inspect.getdoc(member) or '')}"
    return _function(name, member, "### ", "run")


def _signature(name: str, function: object) -> str:
    """Format a signature as one line, or with one line for each parameter if that is too long."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [str(parameter) for key, parameter in signature.parameters.items() if key != "self"]
    kinds = [parameter.kind for key, parameter in signature.parameters.items() if key != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    # Annotations are strings: remove their quotes, and keep those of the default value.
    parameters = [re.sub(r": '([^']*)'", r": \1", text, count=1) for text in parameters]
    result = str(signature.return_annotation).strip("'")
    line = f"{name}({', '.join(parameters)}) -> {result}"
    if len(line) <= 110:
        return line
    return f"{name}(\n    " + ",\n    ".join(parameters) + f",\n) -> {result}"


def _sections(text: str) -> str:
    """Convert a docstring to Markdown: Args and Raises to lists, Returns to text, Example to a block."""
    out: list[str] = []
    for block in re.split(r"\n(?=(?:Args|Returns|Raises|Example):\n)", text):
        title, _, body = block.partition(":\n")
        body = textwrap.dedent(body).strip()
        if title in ("Args", "Raises"):
            entries = re.split(r"\n(?=\S)", body)
            items = [re.sub(r"^([\w, ]+):\s+", r"- `\1`: ", " ".join(entry.split())) for entry in entries]
            out.append(f"**{title}**\n\n" + "\n".join(items))
        elif title == "Returns":
            out.append(f"**Returns** {' '.join(body.split())}")
        elif title == "Example":
            out.append(f"```pycon\n{body}\n```")
        else:
            out.append("\n\n".join(" ".join(paragraph.split()) for paragraph in block.strip().split("\n\n")))
    return "\n\n".join(out)


if __name__ == "__main__":
    print(render(), end="")
