"""Which parts of a backbone a request never runs, so that their parameters can have no gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from vla_core.interfaces import VLMRequest


def highest(request: VLMRequest, n_layers: int) -> int:
    """The highest decoder layer that a request runs; 0: none."""
    speaks = request.decoder > 0 or request.logits != "none"
    return n_layers if speaks else max(request.layers, default=0)


def above(language_model: Any, top: int, norm: bool) -> list[nn.Module]:
    """Decoder layers above ``top``, and the final norm where it is not read."""
    return [*language_model.layers[top:], *([] if norm else [language_model.norm])]


def unused_mergers(mergers: Any, top: int, n_layers: int, raw: bool) -> list[nn.Module]:
    """Projections of deepstack features that are added after no layer that something is read behind."""
    return [
        merger
        for layer, merger in enumerate(mergers, start=1)
        if not (layer < top or (layer == top and (raw or top == n_layers)))
    ]


def names_of(model: nn.Module, modules: Iterable[nn.Module]) -> list[str]:
    """Names of those of ``modules`` that have parameters."""
    wanted = {id(module) for module in modules if any(True for _ in module.parameters())}
    return [name for name, module in model.named_modules() if id(module) in wanted]
