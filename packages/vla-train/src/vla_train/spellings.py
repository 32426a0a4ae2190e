"""Config files and words as users type them: this project's, or StarVLA's, which are translated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_core.config import Tree

from vla_train.presets import load_run_tree

_LISTS = ("trainer.freeze_modules", "trainer.reload_modules")


def load_run(
    files: Sequence[Path], overrides: Sequence[str] = (), say: Callable[[str], None] | None = None
) -> Tree:
    """:func:`~vla_train.presets.load_run_tree` for the command line: it also reads StarVLA's words.

    StarVLA's lie below all that is this project's own; ``say`` is called with a line for each of its keys.
    Lists of modules may be written ``a,b``.

    Raises:
        ConfigError: anything that :func:`load_run_tree` raises, or a key that cannot be translated.
    """
    from vla_core.build import FrameworkConfig

    from vla_train.config import DatasetsConfig, RunConfig, TrainerConfig
    from vla_train.dialects.own_keys import OwnKeys
    from vla_train.dialects.starvla.detect import is_spoken

    def names(config: type) -> frozenset[str]:
        return frozenset(field.name for field in dataclasses.fields(config))

    sections = {"framework": FrameworkConfig, "datasets": DatasetsConfig, "trainer": TrainerConfig}
    own = OwnKeys(names(RunConfig), {name: names(config) for name, config in sections.items()})
    if not is_spoken(files, overrides, own):
        return load_run_tree(files, _listed(overrides), say=say)
    from vla_train.dialects.starvla.translation import translate

    translated = translate(files, overrides, own)
    if say is not None:
        for line in translated.lines:
            say(f"starvla  {line}")
    below = Tree(translated.data, translated.origins)
    return load_run_tree(translated.files, _listed(translated.overrides), below, say)


def _listed(words: Sequence[str]) -> list[str]:
    """``key=a, b`` as ``key=["a", "b"]`` where the key is a list of modules."""
    out = []
    for word in words:
        key, _, value = word.partition("=")
        if key in _LISTS and not value.startswith("["):
            # StarVLA's launchers pass a flag where there is no module.
            names = [] if value in ("null", "true", "false") else [name.strip() for name in value.split(",")]
            word = f"{key}={json.dumps([name for name in names if name])}"
        out.append(word)
    return out
