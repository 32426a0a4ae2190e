"""What would take less memory than a run does: each change with what it saves, by the run's estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from math import gcd

from torch import nn
from vla_core.errors import ConfigError

from vla_train.config import TrainerConfig
from vla_train.engine import Engine
from vla_train.engine.base import KINDS
from vla_train.lora import LoRAConfig, target_layers, whole_modules
from vla_train.memory.estimate import GIB, MOST_GPUS, Estimate
from vla_train.memory.held import Activations
from vla_train.optimizer import eight_bit

MOST_TOGETHER = 4
LEAST = 0.05 * GIB
"""What saves less is not worth a word."""
GROWING = ("gradients", "masters", "moments", "average")
"""Kinds that grow with what trains."""


@dataclass(frozen=True)
class Fix:
    """One change of a run.

    Args:
        words: as they are written in a config or on the command line.
        cost: in speed, as an order: 0 is the cheapest.
        keys: what it changes; of two fixes with a key in common only one is taken.
        apply: the estimate of the run -> that of the changed run.
        inside: of activations alone.
        other: it is another training, or needs another machine.
    """

    words: str
    cost: float
    keys: frozenset[str]
    apply: Callable[[Estimate], Estimate]
    inside: bool = False
    other: bool = False


def fixes(
    model: nn.Module, settings: TrainerConfig, engine: Engine, conversations: int | None = None
) -> list[Fix]:
    """What the run could change, the cheapest in speed first.

    Faster: ``precision=bf16``, compiled blocks. As fast: moments in bf16. A little slower, the more the more
    of it: smaller micro-batches, an activation budget. Then 8-bit moments, blocks that run again, and shards
    on the same GPUs. Other runs: adapters, and shards on more GPUs.

    Args:
        model, settings, engine: of the run.
        conversations: ``datasets.vlm.batch_size``.
    """
    found = [
        *_precision(model, settings, engine),
        *_moments(settings, engine),
        *_batch(settings, conversations),
        *_compiled(settings, engine),
        *_sharded(settings, engine),
        *_adapters(model, settings, engine),
    ]
    found.append(
        Fix("framework.vlm.gradient_checkpointing=true", 6, frozenset({"again"}), _with(_again), True)
    )
    return sorted(found, key=lambda fix: fix.cost)


def saves(now: Estimate, *taken: Fix) -> int | None:
    """Bytes that fixes save together at the peak of a process; None: activations are not estimated."""
    then = reduce(lambda found, fix: fix.apply(found), taken, now)
    if now.peak is not None and then.peak is not None:
        return now.peak - then.peak
    return None if any(fix.inside for fix in taken) else now.total - then.total


def advice(now: Estimate, found: Iterable[Fix], missing: int) -> str:
    """Which fixes save ``missing`` bytes: one alone, the cheapest first, or else several together."""
    known = [(fix, saved) for fix in found if (saved := saves(now, fix)) is None or saved > LEAST]
    enough = [(fix, saved) for fix, saved in known if saved is not None and saved >= missing]
    own = [(fix, saved) for fix, saved in known if not fix.other]
    others = _each((fix, saved) for fix, saved in enough if fix.other)
    alone = _each((fix, saved) for fix, saved in enough if not fix.other)
    said = f"about {missing / GIB:.1f} GiB are missing"
    if alone:
        said += f"; each of these is enough, cheapest in speed first: {alone}"
    elif now.peak is None:
        said += f"; what takes less, cheapest in speed first: {_each(own)}"
    else:
        together = _together(now, [fix for fix, _ in own], missing)
        said += f", and nothing alone is enough: {_each(reversed(own), reverse=True)}"
        if together:
            words = " ".join(fix.words for fix in together)
            said += f"; enough together: {words} ({_about(saves(now, *together))})"
    return f"{said}; or else: {others}" if others else said


def _each(found: Iterable[tuple[Fix, int | None]], reverse: bool = False) -> str:
    """Of several that change the same the first; ``reverse``: they come the other way round."""
    words: dict[str, str] = {}
    for fix, saved in found:
        words.setdefault(min(fix.keys), f"{fix.words} ({_about(saved)})")
    return "; ".join([*words.values()][:: -1 if reverse else 1])


def _about(saved: int | None) -> str:
    return "not estimated" if saved is None else f"saves about {saved / GIB:.1f} GiB"


def _together(now: Estimate, found: list[Fix], missing: int) -> tuple[Fix, ...] | None:
    """The fewest that suffice, and of as many those whose dearest is cheapest."""
    for count in range(2, MOST_TOGETHER + 1):
        sets = [c for c in combinations(found, count) if _apart(c)]
        for taken in sorted(sets, key=lambda c: (max(f.cost for f in c), sum(f.cost for f in c))):
            if (saved := saves(now, *taken)) is not None and saved >= missing:
                return taken
    return None


def _apart(taken: tuple[Fix, ...]) -> bool:
    """Whether no two change the same."""
    return len(frozenset().union(*(fix.keys for fix in taken))) == sum(len(fix.keys) for fix in taken)


def _with(change: Callable[[Activations], Activations]) -> Callable[[Estimate], Estimate]:
    def apply(now: Estimate) -> Estimate:
        found = now.activations
        return now if found is None or found.why_not else replace(now, activations=change(found))

    return apply


def _again(found: Activations) -> Activations:
    return found.run_again()


def _precision(model: nn.Module, settings: TrainerConfig, engine: Engine) -> Iterator[Fix]:
    if settings.precision == "bf16":
        return
    # As :func:`vla_train.optimizer.precision.set_precision` rounds.
    wide = [
        (engine.numel(p), p.requires_grad)
        for name, p in model.named_parameters()
        if p.element_size() == 4 and p.is_floating_point() and not name.startswith("geometry.")
    ]
    every, moving = sum(n for n, _ in wide), sum(n for n, trains in wide if trains)

    def apply(now: Estimate) -> Estimate:
        whole = dict(now.whole)
        whole["weights"] -= 2 * every
        whole["gradients"] -= 2 * moving
        whole["masters"] += 0 if engine.has_masters else 2 * moving
        lower = _with(lambda found: found.in_bf16(settings.precision == "autocast"))
        return lower(replace(now, whole=whole))

    yield Fix("trainer.precision=bf16", 0, frozenset({"precision"}), apply)


def _moments(settings: TrainerConfig, engine: Engine) -> Iterator[Fix]:
    def kept_in(width: float) -> Callable[[Estimate], Estimate]:
        return lambda now: replace(now, whole={**now.whole, "moments": math.ceil(2 * width * now.free)})

    if engine.has_masters:  # it keeps them in fp32
        return
    if settings.moments == "fp32" and settings.betas[1] <= 0.99:
        yield Fix("trainer.moments=bf16", 2, frozenset({"moments"}), kept_in(2))
    if settings.moments != "8bit" and not engine.shards:
        # Shards have none.
        keys = frozenset({"moments", "sharding"})
        yield Fix("trainer.moments=8bit", 5, keys, kept_in(eight_bit.BYTES))


def _batch(settings: TrainerConfig, conversations: int | None) -> Iterator[Fix]:
    rows, steps = settings.batch_size, settings.gradient_accumulation_steps
    shared = rows if conversations is None else gcd(rows, conversations)
    for parts in (n for n in range(2, shared + 1) if shared % n == 0):
        own = "" if conversations is None else f" datasets.vlm.batch_size={conversations // parts}"
        words = f"trainer.batch_size={rows // parts}{own} trainer.gradient_accumulation_steps={steps * parts}"

        def apply(found: Activations, parts: int = parts) -> Activations:
            return found.smaller_batch(parts)

        yield Fix(words, 3 + parts / 1e6, frozenset({"batch"}), _with(apply), True)


def _compiled(settings: TrainerConfig, engine: Engine) -> Iterator[Fix]:
    if engine.gathers_inside:
        return
    off = settings.compile == "off"
    for budget in (tenth / 10 for tenth in range(10, -1, -1)):
        if not off and budget >= settings.activation_budget:
            continue
        words = ["trainer.compile=blocks"] * off + [f"trainer.activation_budget={budget:g}"] * (budget < 1)

        def apply(found: Activations, budget: float = budget) -> Activations:
            return found.compiled(budget)

        cost = 1 if budget == 1 else 4 + (1 - budget) / 10
        yield Fix(" ".join(words), cost, frozenset({"compile"}), _with(apply), True)


def _sharded(settings: TrainerConfig, engine: Engine) -> Iterator[Fix]:
    """FSDP2, on the GPUs that there are and on more."""
    least = engine.world + 1 if engine.shards else max(2, engine.world)
    # Beside its shares a process has a group that computes, its gradient, and those gathered ahead.
    groups = (2 + settings.prefetch) * settings.gather_mb * 2**20
    narrow = settings.moments == "8bit"
    for count in range(least, MOST_GPUS + 1):
        if count % engine.world:
            continue

        def apply(now: Estimate, count: int = count) -> Estimate:
            whole = dict(now.whole)
            if engine.has_masters:  # ours complete their weight
                whole["masters"] //= 2
            if narrow:
                whole["moments"] = 4 * now.free
            had = now.world if "gradients" in now.spreads else 1
            fewer = _with(lambda found: found.with_gradients(had / count))
            spread = replace(now, whole=whole, spreads=frozenset(KINDS), world=count, gathered=groups)
            return fewer(spread)

        words = "trainer.sharding=fsdp2" + " trainer.moments=bf16" * narrow
        if count == engine.world:
            where, cost = f"on the same {count} GPUs", 7.0
        else:
            where, cost = (
                f"on {count} GPUs (torchrun --nproc_per_node {count})",
                9 + count / 1e3,
            )
        yield Fix(f"{words} {where}", cost, frozenset({"sharding"}), apply, other=count > engine.world)


def _adapters(model: nn.Module, settings: TrainerConfig, engine: Engine) -> Iterator[Fix]:
    """Adapters on the backbone; head and fusion train as they do now."""
    if settings.lora is not None:
        return
    config = LoRAConfig(modules=("vlm",))
    try:
        layers = target_layers(model, config.modules)
        parts = whole_modules(model, config, layers)
    except ConfigError:  # nothing to put them on
        return
    named = dict(model.named_modules())
    sizes = [(m.in_features + m.out_features) for name in layers if isinstance(m := named[name], nn.Linear)]
    weights = {id(p): engine.numel(p) for name in parts for p in named[name].parameters()}
    left = config.rank * sum(sizes) + sum(weights.values())

    def apply(now: Estimate) -> Estimate:
        share = min(1.0, left / now.free) if now.free else 1.0
        whole = {kind: math.ceil(n * share) if kind in GROWING else n for kind, n in now.whole.items()}
        fewer = _with(lambda found: found.with_gradients(share))
        return fewer(replace(now, whole=whole, free=math.ceil(now.free * share)))

    yield Fix("trainer.lora.modules=[vlm]", 8, frozenset({"lora"}), apply, other=True)
