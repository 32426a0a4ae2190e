"""Builds the policy of a smoke test and looks at it: counts, shapes at each stage, FLOP.

Shape legend: B rows, T action steps, A action dims.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vla_core.assemble import build_policy
from vla_core.batch import Batch, TokenFields
from vla_core.config import Tree, build_config, to_plain
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_sample, make_spec

from vla_train._smoke_sizes import CAMERA, Size

FITTED_ON = 16
PARTS = ("vlm", "geometry", "fusion", "head", "auxiliary")
METHODS = {"text tokens": "embed_text", "visual tokens": "embed_images"}
MODULES = {"geometry": "geometry", "fused": "fusion", "hidden states": "vlm"}
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
"""What :func:`without_storage` raises where a part reads the value of a tensor."""
STAGES = (*METHODS, *MODULES)
"""In the order they run; geometry and fused only where there is such a part."""


def build(tree: Tree, size: Size, device: str | None = None) -> VLAPolicy:
    """The policy for a made-up robot with two cameras; at size full on the meta device, unless one is named.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    side = CAMERA[size]
    spec = make_spec(n_cameras=2, height=side, width=side, horizon=config.horizon)
    # For a head that must see data (a tokenizer of actions), however little that is worth.
    samples = [make_sample(spec, seed) for seed in range(FITTED_ON)]
    rows = [(s.observation.state, s.actions, s.action_mask) for s in samples]
    with torch.device(device or ("cpu" if size == "tiny" else "meta")):
        return build_policy(config, {spec.embodiment: spec}, rows={spec.embodiment: lambda: rows}, tree=tree)


@contextmanager
def without_storage(policy: VLAPolicy) -> Iterator[None]:
    """A block in which a policy on the meta device runs like one on the CPU, on shapes alone.

    The meta device itself would not do: it knows no autocast, about which parts of a policy ask. Nothing
    trains any more afterwards (torch's FLOP counter cannot follow gradients of what it counts here).
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in policy.model.modules():
            tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in tensors:
                fake: Tensor = torch.empty_like(tensor, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    fake = nn.Parameter(fake, requires_grad=False)
                setattr(module, name, fake)
        yield


def training_batch(policy: VLAPolicy, rows: int) -> Batch:
    """Made-up samples through pipeline and collator."""
    ((name, pipeline),) = policy.pipelines.items()
    samples = [pipeline(make_sample(policy.specs[name], seed)) for seed in range(rows)]
    if policy.model.auxiliary is None:
        return policy.collator(samples)
    # Made-up chunks lead to the observation of the next sample.
    ends = [*samples[1:], samples[0]]
    led = [replace(s, future=end.observation) for s, end in zip(samples, ends, strict=True)]
    return policy.collator(led, future=True)


def inference_batch(policy: VLAPolicy, rows: int) -> Batch:
    """The same observations without targets."""
    ((_, spec),) = policy.specs.items()
    return policy.collate([make_observation(spec, seed) for seed in range(rows)])


def noise_for(policy: VLAPolicy, rows: int) -> Tensor:
    """Noise ``[B, *policy.noise_shape]``."""
    return torch.randn(rows, *policy.noise_shape)


def parts_of(policy: VLAPolicy) -> dict[str, nn.Module]:
    """Name -> module of the parts that there are."""
    found = {name: getattr(policy.model, name) for name in PARTS}
    return {name: part for name, part in found.items() if part is not None}


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Total and trainable parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)


@contextmanager
def recorded(policy: VLAPolicy) -> Iterator[dict[str, Any]]:
    """What each stage returns while the block runs, by the name of the stage."""
    seen: dict[str, Any] = {}
    undo: list[Callable[[], None]] = []
    vlm: Any = policy.model.vlm

    def listen(stage: str, module: nn.Module) -> None:
        handle = module.register_forward_hook(lambda _m, _i, output: seen.__setitem__(stage, output))
        undo.append(handle.remove)

    def wrap(stage: str, method: str) -> None:
        original = getattr(vlm, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen[stage] = original(*args, **kwargs)
            return seen[stage]

        # On the instance, in front of the class's method; undone by deleting it.
        object.__setattr__(vlm, method, call)
        undo.append(lambda: object.__delattr__(vlm, method))

    for stage, method in METHODS.items():
        wrap(stage, method)
    parts = parts_of(policy)
    for stage, part in MODULES.items():
        if part in parts:
            listen(stage, parts[part])
    try:
        yield seen
    finally:
        for step in undo:
            step()


def shapes(value: Any, name: str = "") -> list[str]:
    """``name dtype [shape]`` of every tensor in dataclasses, mappings and sequences, and whole numbers."""
    if isinstance(value, Tensor):
        text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        return [f"{name} {text}".strip()]
    if isinstance(value, int) and not isinstance(value, bool):
        return [f"{name} = {value}"]
    if isinstance(value, tuple) and value and all(isinstance(entry, int) for entry in value):
        return [f"{name} = {value}"]
    if isinstance(value, TokenFields) and name == "fields":
        return []  # the batch's, shown there
    if dataclasses.is_dataclass(value):
        rows = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return [line for key, part in rows for line in shapes(part, f"{name}.{key}".lstrip("."))]
    if isinstance(value, Mapping) and all(isinstance(key, int) for key in value):
        return _same([shapes(part, f"{name}[{key}]") for key, part in value.items()])
    if isinstance(value, Mapping):
        return [line for key, part in value.items() for line in shapes(part, f"{name}.{key}".lstrip("."))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _same([shapes(part, f"{name}[{i}]") for i, part in enumerate(value)])
    return []


def _same(groups: list[list[str]]) -> list[str]:
    """Entries of one shape as ``first ... last`` with their number."""
    lines = [line for group in groups for line in group]
    kinds = {line.partition(" ")[2] for line in lines}
    if len(lines) < 3 or len(kinds) > 1:
        return lines
    first, last = lines[0].partition(" ")[0], lines[-1].partition(" ")[0]
    return [f"{first} ... {last} ({len(lines)}) {kinds.pop()}"]


def differences(part: nn.Module, node: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted option -> value, where ``node`` is not the default of the part's Config."""
    defaults = {}
    for field in dataclasses.fields(cast(Any, type(part)).Config):
        factory = field.default_factory
        value = factory() if factory is not dataclasses.MISSING else field.default
        defaults[field.name] = to_plain(value) if dataclasses.is_dataclass(value) else value
    own = {key: value for key, value in node.items() if key != "name"}
    plain = dict(_flat(defaults))
    return {key: value for key, value in _flat(own) if key not in plain or not _equal(plain[key], value)}


def _equal(a: Any, b: Any) -> bool:
    return bool((list(a) if isinstance(a, tuple) else a) == b)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@torch.no_grad()
def count_flop(policy: VLAPolicy) -> tuple[int | None, int | None]:
    """Forward FLOP of one training sample (all its repeats), and of one predicted chunk (all its steps).

    None where what is computed depends on values (autoregressive decoding) and there are none. Matrix
    products and convolutions as torch counts them; attention as a full square.
    """
    sample, observed = training_batch(policy, 1), inference_batch(policy, 1)
    noise = noise_for(policy, 1)
    totals: list[int | None] = []
    for run in (lambda: policy.model(sample), lambda: policy.model.predict(observed, noise)):
        counter = FlopCounterMode(display=False)
        try:
            with sdpa_kernel(SDPBackend.MATH), counter:
                run()
        except NEEDS_VALUES:
            totals.append(None)
        else:
            totals.append(counter.get_total_flops())
    return totals[0], totals[1]
