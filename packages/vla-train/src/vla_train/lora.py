"""Low-rank adapters on chosen linear layers (LoRA, arXiv 2106.09685), through peft.

Training sees the adapters, everyone else the sum: :func:`merged_state` has the names of the plain
policy, so a checkpoint loads and serves without peft. The adapters themselves are kept beside it, in the
resume state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from vla_core.errors import ConfigError, suggest
from vla_core.interfaces import AnsweringModel
from vla_core.ranges import BelowOne, Count, check_ranges
from vla_core.shard import ShardUnit, mark

ADAPTER = "default"


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers get adapters; all else is frozen but ``train_modules``.

    Args:
        modules: linear layers, each entry a module whose layers are all meant
            (``vlm.model.language_model``), the end of a layer's name (``q_proj``), or a regular expression
            for whole names. Language heads, which are read and not called, are left out.
        rank: of the adapters.
        alpha: an adapter's output is scaled by alpha / rank; null: alpha is twice the rank.
        dropout: on an adapter's input.
        train_modules: modules that train as a whole; null: the head, fusion and auxiliary that there are,
            and the embedding of tokens that the head added to the vocabulary.
    """

    modules: tuple[str, ...] = ()
    rank: Count = 16
    alpha: Count | None = None
    dropout: BelowOne = 0.0
    train_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            raise ConfigError("trainer.lora.modules must name layers, e.g. [vlm.model.language_model]")
        check_ranges(self, "trainer.lora.")


def target_layers(model: nn.Module, entries: Iterable[str]) -> list[str]:
    """Names of the linear layers that ``entries`` mean (see :class:`LoRAConfig`), in the model's order.

    Raises:
        ConfigError: an entry that means none, with the nearest names, or a layer frozen by its own part.
    """
    linear = {
        name: layer
        for name, layer in model.named_modules()
        if _is_linear(layer) and name.rpartition(".")[2] != "lm_head"
    }
    chosen: set[str] = set()
    for entry in entries:
        found = {n for n in linear if n == entry or n.startswith(entry + ".") or n.endswith("." + entry)}
        if not found:
            try:
                found = {n for n in linear if re.fullmatch(entry, n)}
            except re.error as error:
                raise ConfigError(
                    f"trainer.lora.modules: '{entry}' is no regular expression ({error})"
                ) from None
        if not found:
            raise ConfigError(
                f"trainer.lora.modules: no linear layer of the policy is or lies under '{entry}'"
                f"{suggest(entry, _near(entry, linear))}"
            )
        chosen |= found
    frozen = [name for name in linear if name in chosen and not linear[name].weight.requires_grad]
    if frozen:
        raise ConfigError(
            f"trainer.lora.modules: '{frozen[0]}' is frozen by the config of its own part and would "
            "not train; leave it out or unfreeze the part"
        )
    return [name for name in linear if name in chosen]


def _near(entry: str, layers: Iterable[str]) -> set[str]:
    """What ``entry`` may have meant: modules as deep as it, or ends of names."""
    parts = [name.split(".") for name in layers]
    depth = entry.count(".") + 1
    heads = {".".join(p[:depth]) for p in parts}
    return heads | {p[-1] for p in parts} if depth == 1 else heads


def apply_lora(
    policy: nn.Module, config: LoRAConfig, sharing: AbstractContextManager[Any] | None = None
) -> list[str]:
    """Put adapters around the layers, in place, and freeze all but them and ``train_modules``.

    An adapter starts as zero, so the policy's outputs stay. Returns the layers' names.

    Args:
        policy: what gets adapters.
        config: where, and of which size.
        sharing: around what makes them, as :meth:`vla_train.engine.Engine.sharing`.

    Raises:
        ConfigError: names that fit no module or overlap, or peft is not installed.
    """
    layers = target_layers(policy, config.modules)
    whole = whole_modules(policy, config, layers)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"trainer.lora needs the package '{error.name}'; pip install 'vla-train[lora]'"
        ) from error
    policy.requires_grad_(False)
    alpha = 2 * config.rank if config.alpha is None else config.alpha
    peft_config = LoraConfig(
        r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=layers
    )
    with sharing or nullcontext():
        inject_adapter_in_model(peft_config, policy, adapter_name=ADAPTER)
    adapted: list[Any] = [module for module in policy.modules() if _is_adapted(module)]
    for layer in adapted:
        # Without memory, as where an engine keeps shares, peft leaves them as they are.
        for adapter in (layer.lora_A, layer.lora_B):
            adapter.to(layer.base_layer.weight.dtype)
    # What is gathered by itself is so with its adapter.
    mark(layer for layer in adapted if isinstance(layer.base_layer, ShardUnit))
    for name in whole:
        policy.get_submodule(name).requires_grad_(True)
    return layers


def whole_modules(policy: nn.Module, config: LoRAConfig, layers: list[str]) -> list[str]:
    """Names of the modules that train as a whole beside adapters on ``layers``."""
    modules = [name for name, _ in policy.named_modules() if name]
    names = config.train_modules
    if names is None:
        vlm = cast(AnsweringModel, policy.vlm)
        new = [f"vlm.{name}" for name in vlm.answer_modules] if vlm.dims.decoder else []
        free = (n for n in ("head", "fusion", "auxiliary", *new) if n in modules)
        return [n for n in free if not any(layer.startswith(n + ".") for layer in layers)]
    for name in names:
        if name not in modules:
            near = [m for m in modules if m.count(".") <= name.count(".")]
            raise ConfigError(
                f"trainer.lora.train_modules: the policy has no module '{name}'{suggest(name, near)}"
            )
        for layer in layers:
            if layer == name or layer.startswith(name + "."):
                raise ConfigError(
                    f"trainer.lora.train_modules: '{name}' trains as a whole, and trainer.lora.modules puts "
                    f"an adapter on '{layer}' in it; choose one"
                )
    return list(names)


@torch.no_grad()
def merged_state(policy: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict of the plain policy: each adapted weight plus its adapter, summed in float32.

    ``state``: that of ``policy``, where its own parameters are split over processes. The policy itself is
    left as it is: adding and subtracting in place would wear its weights down.
    """
    state = policy.state_dict() if state is None else state
    adapted = {name: layer for name, layer in policy.named_modules() if _is_adapted(layer)}
    inner = tuple(name + "." for name in adapted)
    merged = {key: value for key, value in state.items() if not key.startswith(inner)}
    for name, layer in adapted.items():
        down, up = (state[f"{name}.lora_{part}.{ADAPTER}.weight"] for part in "AB")
        base = state[f"{name}.base_layer.weight"]
        delta = (up.float() @ down.float()) * layer.scaling[ADAPTER]
        # Rounded as the adapter's own output is.
        merged[f"{name}.weight"] = (base.float() + delta.to(up.dtype).float()).to(base.dtype)
        if f"{name}.base_layer.bias" in state:
            merged[f"{name}.bias"] = state[f"{name}.base_layer.bias"].detach()
    return merged


def _is_linear(layer: nn.Module) -> bool:
    # Other subclasses may be read by the module around them, past an adapter.
    return type(layer) is nn.Linear or (isinstance(layer, nn.Linear) and isinstance(layer, ShardUnit))


def _is_adapted(layer: Any) -> bool:
    return (
        isinstance(layer, nn.Module) and hasattr(layer, "base_layer") and hasattr(layer, "get_delta_weight")
    )
