"""Write docs/config.md: every config key with type, default and meaning, from the Config dataclasses.

uv run tools/config_reference.py            fails when the page is not what the code says
uv run tools/config_reference.py --write    refreshes it (``make docs``)
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomllib
from omegaconf import MISSING
from vla_core import ranges, registry
from vla_core.framework import FrameworkConfig
from vla_train.config import DatasetsConfig, RunConfig, TrainerConfig
from vla_train.dataloading.conversation_config import ConversationsConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "config.md"
INTRODUCTION = """\
# Config

<!-- Written by `make docs` from the Config dataclasses; change those. -->

A run is one YAML file, or several (a later one wins), and `key=value` on the command line wins over all:

```sh
vla-train --config configs/quickstart.yaml trainer.max_steps=500 framework.name=QwenOFT
```

`framework.name` picks a preset; whatever else stands under `framework` changes it. A part is written
`{name: <its name>, <its options>}`. Where the command line or a later file names another preset or another
part, options that earlier files gave to a part that is no longer there are left out, with a line (of a
backbone and of a data set, those that the new one has not); what comes with the new name is never left out.
Every key is checked: an unknown one, a value of the wrong type or a number out of the range beside its type
(NaN and infinity are in none) stops the program with one line that names file, line, key and the nearest
valid name or the range. The resolved config is saved in the checkpoint.
"""
PLACES = {
    "vla.vlms": ("framework.vlm", "Backbone"),
    "vla.heads": ("framework.head", "Head"),
    "vla.geometry": ("framework.geometry", "Geometry encoder"),
    "vla.fusions": ("framework.fusion", "Fusion"),
    "vla.auxiliaries": ("framework.auxiliary", "Auxiliary losses"),
    "vla.sources": ("datasets.train", "Dataset"),
    "vla.conversations": ("datasets.vlm.sources", "Conversations"),
    "vla.envs": ("trainer.evaluation.env_options", "Simulator"),
}


def arguments(cls: type) -> dict[str, str]:
    """Field -> meaning, from the ``Args:`` of the class docstring (``a, b: ...`` documents both).

    Fields that a Config inherits are documented where they are declared.
    """
    inherited = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
    text = inspect.getdoc(cls) or ""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.partition("Args:\n")[2].splitlines():
        head = re.match(r" {4}(\w+(?:, \.?\w+)*): (.*)", line)
        if head:
            names = [name.lstrip(".") for name in head[1].split(", ")]
            found.update(dict.fromkeys(names, head[2].strip()))
        elif line.strip() and line.startswith("    "):
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        else:
            names = []
    own = {name: markdown(value) for name, value in found.items()}
    return {k: v for base in reversed(inherited) for k, v in arguments(base).items()} | own


def markdown(text: str) -> str:
    """A docstring's text for a table cell."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", "\\|")


def show_type(cls: type, field: dataclasses.Field[Any]) -> str:
    """The annotation, with literals as their values and the range of its numbers."""
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    declares = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", ()))
    for name, alias in vars(sys.modules[declares.__module__]).items():
        if ranges.bare(alias)[1] is not None:
            text = re.sub(rf"\b{name}\b", ranges.bare(alias)[0].__name__, text)
        elif get_origin(alias) is Literal:
            text = re.sub(rf"\b{name}\b", f"Literal{list(get_args(alias))}", text)
    text = re.sub(r"Annotated\[(\w+), Range\([^)]*\)\]", r"\1", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda m: re.sub(r"[\"']", "", m[1].replace(", ", " | ")), text)
    limits = dict.fromkeys(str(limit or "") for _, limit in ranges.ranges_of(ranges.hints(cls)[field.name]))
    text = ", ".join([text.replace("dict[str, Any]", "mapping"), *filter(None, limits)])
    return text.replace("|", "\\|")


def default(field: dataclasses.Field[Any]) -> Any:
    """The default value of a field, or a marker that there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def show_default(field: dataclasses.Field[Any]) -> str:
    """The default as YAML would have it."""
    value = default(field)
    if value is dataclasses.MISSING or (isinstance(value, str) and value == MISSING):
        return "required"
    if dataclasses.is_dataclass(value):
        return "see below"
    return f"`{json.dumps(value)}`".replace("|", "\\|")


def summary(cls: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return markdown(" ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()))


def section(title: str, cls: type, lead: str = "", nested: bool = True) -> Iterator[str]:
    """A heading, a table of the fields of a Config, and those of the configs inside it."""
    rows, meanings = dataclasses.fields(cls), arguments(cls)
    about = summary(cls) if not lead or (len(rows) > 1 and not meanings) else ""
    yield f"\n## {title}\n"
    yield f"{lead} {about}".strip() + "\n"
    if not rows:
        yield "No options."
        return
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    alone = summary(cls) if len(rows) == 1 else ""
    for field in rows:
        meaning = meanings.get(field.name, alone)
        yield f"| `{field.name}` | {show_type(cls, field)} | {show_default(field)} | {meaning} |"
    for field in rows if nested else ():
        if dataclasses.is_dataclass(inner := default(field)):
            yield from section(f"{title}: `{field.name}`", type(inner))


def shipped() -> Iterator[tuple[str, str]]:
    """(group, name) of the parts of this repository, not of others that happen to be installed."""
    for group in PLACES:
        for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
            points = tomllib.loads(path.read_text())["project"].get("entry-points", {})
            yield from ((group, name) for name in points.get(group, {}))


def render() -> str:
    """The whole page."""
    lines = [INTRODUCTION.rstrip()]
    lines += section("Run", RunConfig, nested=False)
    lines += section("`framework`", FrameworkConfig)
    lines += section("`datasets`", DatasetsConfig)
    lines += section("`datasets.vlm`", ConversationsConfig)
    lines += section("`trainer`", TrainerConfig)
    for name in registry.names("vla.transforms"):
        step = registry.load("vla.transforms", name)
        lines += section(f"Transform `{name}`", step.Config, f"{summary(step)} In `framework.transforms`.")
    for group, name in shipped():
        place, kind = PLACES[group]
        cls = registry.load(group, name)
        lines += section(f"{kind} `{name}`", cls.Config, f"{summary(cls)} In `{place}`.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compare, or write with ``--write``; returns the exit code."""
    parser = argparse.ArgumentParser(description="docs/config.md from the Config dataclasses")
    parser.add_argument("--write", action="store_true", help="refresh the page")
    write = parser.parse_args().write
    page = render()
    if write:
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        print("config_reference: docs/config.md is not what the code says; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
