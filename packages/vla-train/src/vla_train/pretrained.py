"""Weights of ``trainer.pretrained_checkpoint``: which are taken, and which do not fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn
from vla_core.checkpoint import weights_file
from vla_core.errors import ConfigError, suggest
from vla_core.weights import load_weights

from vla_train.config import TrainerConfig
from vla_train.reach import as_modules

MOST_NAMES = 6


def start_from(model: nn.Module, trainer: TrainerConfig) -> str:
    """Copy weights of ``trainer.pretrained_checkpoint``; all that is asked for must fit.

    Returns a line that says what was copied, what was not, and what of the checkpoint has no place.

    Raises:
        ConfigError: an entry of ``trainer.reload_modules`` that names nothing, or what does not fit.
    """
    file = weights_file(Path(trainer.pretrained_checkpoint or ""))
    state, own = load_weights(file), model.state_dict()
    asked = _asked(model, own, trainer.reload_modules)
    if not any(_under(key, "auxiliary") for key in state):
        # What only trains may be new in this run.
        asked = [key for key in asked if not _under(key, "auxiliary")]
    wrong = {key: said for key in asked if (said := _problem(key, own[key], state))}
    if wrong:
        raise ConfigError(f"trainer.pretrained_checkpoint: {_misfit(model, file, own, wrong, state, asked)}")
    with warnings.catch_warnings():
        # Of parameters kept by shares torch thinks that nothing is copied.
        warnings.filterwarnings("ignore", message=".*from a non-meta parameter in the checkpoint to a meta")
        model.load_state_dict({key: state[key] for key in asked}, strict=False)
    return _report(model, file, own, asked, state)


def takes_head(model: nn.Module, entries: Sequence[str]) -> bool:
    """Whether ``trainer.reload_modules`` takes anything of the head.

    Raises:
        ConfigError: an entry that names nothing.
    """
    return any(_under(key, "head") for key in _asked(model, model.state_dict(), entries))


def _under(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(prefix + ".")


def _asked(model: nn.Module, own: Mapping[str, Tensor], entries: Sequence[str]) -> list[str]:
    """The names in ``own`` that the entries mean: modules, or regular expressions for whole names."""
    if not entries:
        return list(own)
    found: set[str] = set()
    for entry in entries:
        below = {key for key in own if _under(key, entry)}
        with suppress(re.error):
            below |= {key for key in own if re.fullmatch(entry, key)}
        if not below:
            depth = entry.count(".")
            near = [name for name, _ in model.named_modules() if name and name.count(".") <= depth]
            raise ConfigError(
                f"trainer.reload_modules: the policy has no module '{entry}'{suggest(entry, near)}"
            )
        found |= below
    return [key for key in own if key in found]


def _problem(key: str, value: Tensor, state: Mapping[str, Tensor]) -> str:
    if key not in state:
        return f"no '{key}' there"
    if state[key].shape != value.shape:
        return f"'{key}' has shape {tuple(state[key].shape)} there, the policy has {tuple(value.shape)}"
    return ""


def _misfit(
    model: nn.Module,
    file: Path,
    own: Mapping[str, Tensor],
    wrong: Mapping[str, str],
    state: Mapping[str, Tensor],
    asked: Sequence[str],
) -> str:
    """How many tensors do not fit, the first of them, and which modules fit as a whole."""
    said = [*wrong.values()]
    more = f", and {len(said) - 3} more" if len(said) > 3 else ""
    count = f"{len(said)} of {len(asked)} tensors asked for do not fit"
    return f"{count} {file}: {', '.join(said[:3])}{more}; {_advice(model, own, wrong, state, asked)}"


def _advice(
    model: nn.Module,
    own: Mapping[str, Tensor],
    wrong: Mapping[str, str],
    state: Mapping[str, Tensor],
    asked: Sequence[str],
) -> str:
    fits = list(_fitting(model, {key for key in asked if key not in wrong}, own))
    if not fits:
        return f"it has the parts {', '.join(sorted({key.partition('.')[0] for key in state}))}"
    return f"trainer.reload_modules=[{','.join(fits[:MOST_NAMES])}] takes modules that fit"


def _fitting(model: nn.Module, good: set[str], own: Mapping[str, Tensor]) -> Iterator[str]:
    """The largest modules all of whose tensors are ``good``."""
    done: list[str] = []
    for name, _ in model.named_modules():
        inside = {key for key in own if _under(key, name)} if name else set()
        if inside and inside <= good and not any(_under(name, whole) for whole in done):
            done.append(name)
            yield name


def _report(
    model: nn.Module, file: Path, own: Mapping[str, Tensor], asked: Sequence[str], state: Mapping[str, Tensor]
) -> str:
    taken = set(asked)
    parts = [f"weights of {file}: {len(asked)} of {len(own)} tensors are taken ({_short(model, asked)})"]
    rest = [key for key in own if key not in taken]
    if rest:
        parts.append(f"{len(rest)} start as built ({_short(model, rest)})")
    unused = [key for key in state if key not in taken]
    if unused:
        parts.append(f"{len(unused)} of the checkpoint's are not used ({_short(model, unused)})")
    return "; ".join(parts)


def _short(model: nn.Module, names: Sequence[str]) -> str:
    found = as_modules(model, names)
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return f"{', '.join(found[:MOST_NAMES])}{more}"
