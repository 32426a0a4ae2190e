"""From a config tree to everything a run needs: validated config, data and policy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from vla_core.assemble import build_policy
from vla_core.backbone import BackboneModel, BackbonePolicy, build_backbone
from vla_core.checkpoint import HEAD_ASSETS, changes, weights_file
from vla_core.config import Tree, build_config, to_plain
from vla_core.errors import ConfigError, UserError
from vla_core.fitting import FitCache
from vla_core.framework import FrameworkConfig
from vla_core.model import VLAModel
from vla_core.policy import VLAPolicy
from vla_core.resolve import resolve

from vla_train.backbone_alone import of_backbone
from vla_train.checkpointing.states import step_of
from vla_train.config import RunConfig
from vla_train.dataloading.conversation_config import ConversationsConfig
from vla_train.dataloading.conversations import (
    Conversations,
    image_size_of,
    open_conversations,
    with_language_head,
)
from vla_train.dataloading.data_sets import Data, open_data
from vla_train.engine.shares import NotByShares, check_complete
from vla_train.pretrained import start_from, takes_head
from vla_train.start import Start, check_numbers, read_start, robots_of


@dataclass(frozen=True)
class Composed:
    """A validated run: its config, the opened data and the policy.

    Args:
        config: the whole.
        robots: their data; None in ``trainer.job: vlm``.
        trained: the policy, or in that job its backbone alone.
        notes: lines to say about its data and what it starts from.
        conversations: what the backbone learns from besides, or alone.
    """

    config: RunConfig
    robots: Data | None
    trained: VLAPolicy | BackbonePolicy
    notes: tuple[str, ...] = ()
    conversations: Conversations | None = None

    @property
    def data(self) -> Data:
        """The robots' data, where there are any."""
        assert self.robots is not None
        return self.robots

    @property
    def policy(self) -> VLAPolicy:
        """The policy, where it is one."""
        assert isinstance(self.trained, VLAPolicy)
        return self.trained

    @property
    def model(self) -> VLAModel | BackboneModel:
        """The module that is trained."""
        return self.trained.model

    @property
    def resolved(self) -> dict[str, Any]:
        """The whole config as plain data, with every part's defaults: it gives the same run again."""
        return {**to_plain(self.config), "framework": self.trained.config}


def _head_assets(config: RunConfig) -> Path | None:
    """Where a head's assets are that belong to the weights this run goes on from, if there are any.

    A tokenizer fitted anew would give the same ids another meaning. One that the config names is kept.
    """
    trainer = config.trainer
    if trainer.resume and config.run_id is not None:
        found = Path(config.run_root_dir) / config.run_id / "checkpoints"
        newest = max(found.glob("steps_*"), key=step_of, default=found)
        assets = newest / "assets" / HEAD_ASSETS
        return assets if assets.is_dir() else None
    if trainer.pretrained_checkpoint is None or config.framework["head"].get("tokenizer") is not None:
        return None
    if trainer.reload_modules and not {"head", "vlm"} & set(trainer.reload_modules):
        return None
    assets = weights_file(Path(trainer.pretrained_checkpoint)).parent / "assets" / HEAD_ASSETS
    return assets if assets.is_dir() else None


def compose(
    tree: Tree,
    config: RunConfig | None = None,
    device: torch.device | str | None = None,
    weights: bool = True,
    sharing: Callable[[], AbstractContextManager[Any]] = nullcontext,
    shapes_above: int | None = None,
) -> Composed:
    """Validate everything, open the data, build the policy.

    Args:
        tree: the config as read.
        config: the validated tree, where the caller has it (and has decided on ``trainer.resume: auto``).
        device: where the parameters are made: billions take minutes on a CPU and a second on a GPU.
        weights: read those of ``trainer.pretrained_checkpoint``; False is for a model on the meta device.
        sharing: around what makes and fills the model, as :meth:`vla_train.engine.Engine.sharing`.
        shapes_above: a policy of more parameters is made of shapes alone (on the meta device), where its
            parts can be.

    Raises:
        ConfigError: one line that names file, key and fix.
    """
    config = config or build_config(RunConfig, tree.data, "", tree)
    framework = build_config(FrameworkConfig, config.framework, "framework", tree)
    talks = config.datasets.vlm if config.job != "vla" else None
    if talks is not None:
        framework = with_language_head(framework, tree)
        if config.job == "vlm":
            return _compose_backbone(tree, config, framework, talks, device, sharing, shapes_above)
    data = open_data(config.datasets, framework.horizon, tree)
    starts: dict[str, Start] = {}
    pretrained, kept = config.trainer.pretrained_checkpoint, config.trainer.keep_statistics
    if config.trainer.resume and not kept:
        pretrained = None  # what it did is in the state
    known = [] if pretrained is None else robots_of(pretrained)
    if pretrained is not None and known:
        starts = {name: read_start(pretrained, name) for name in data.specs}
    if kept and not starts:
        raise ConfigError(f"trainer.keep_statistics: {pretrained} knows no robot, and so no statistics")
    if kept:
        data = replace(data, specs={n: starts[n].with_statistics(spec) for n, spec in data.specs.items()})

    report: list[str] = []

    def build(device: torch.device | str | None) -> VLAPolicy:
        torch.manual_seed(config.seed)
        return build_policy(
            framework,
            data.specs,
            statistics={name: start.statistics for name, start in starts.items()} if kept else None,
            rows={name: data.rows(name) for name in data.specs},
            head_assets=_head_assets(config),
            tree=tree,
            device=device,
            cache=_cache(config, data),
        )

    def make() -> VLAPolicy:
        policy = None if shapes_above is None else _shapes(build, shapes_above)
        policy = policy or build(device)
        if pretrained is None or config.trainer.resume:
            return policy
        by_number = bool(starts) and policy.model.head.traits.per_embodiment
        if by_number and takes_head(policy.model, config.trainer.reload_modules):
            parts = [name for name, part in policy.model.named_children() if part.state_dict()]
            check_numbers(pretrained, known, list(data.specs), [name for name in parts if name != "head"])
        if weights:
            report[:] = [start_from(policy.model, config.trainer)]
        return policy

    policy, said = _made(make, sharing)
    changed = [] if pretrained is None else [f"warning: {line}" for line in changes(Path(pretrained))]
    notes = [*data.notes, *report, *said, *changed] + [
        line for name, start in starts.items() for line in start.differences(policy.pipelines[name], kept)
    ]
    conversations = None
    if talks is not None:
        conversations = open_conversations(talks, policy.model, config.trainer.batch_size, tree)
    return Composed(config, data, policy, tuple(notes), conversations)


P = TypeVar("P", VLAPolicy, BackbonePolicy)


def _shapes(build: Callable[[str], P], above: int) -> P | None:
    """A policy without numbers; None where it has no more than ``above``, or a part reads a value."""
    try:
        policy = build("meta")
    except (RuntimeError, UserError):
        return None  # a mistake is met again with the policy itself
    return policy if sum(p.numel() for p in policy.model.parameters()) > above else None


def _compose_backbone(
    tree: Tree,
    config: RunConfig,
    framework: FrameworkConfig,
    talks: ConversationsConfig,
    device: torch.device | str | None,
    sharing: Callable[[], AbstractContextManager[Any]],
    shapes_above: int | None,
) -> Composed:
    """The backbone of a framework alone, on conversations; ``trainer.batch_size`` counts these."""
    asked, batch_size = config.trainer.batch_size, talks.batch_size or config.trainer.batch_size
    notes: tuple[str, ...] = ()
    if batch_size != asked and "trainer.batch_size" in tree.origins:
        notes = (
            f"trainer.batch_size: {asked} is of robots' samples, and this run has none; conversations come "
            f"{batch_size} at a time (datasets.vlm.batch_size)",
        )
    trainer, idle = of_backbone(replace(config.trainer, batch_size=batch_size))
    config = replace(config, trainer=trainer)

    report: list[str] = []

    def build(device: torch.device | str | None) -> BackbonePolicy:
        torch.manual_seed(config.seed)
        return build_backbone(resolve(framework, tree), image_size_of(talks, framework), device)

    def make() -> BackbonePolicy:
        trained = None if shapes_above is None else _shapes(build, shapes_above)
        trained = trained or build(device)
        if config.trainer.pretrained_checkpoint is not None and not config.trainer.resume:
            report[:] = [start_from(trained.model, config.trainer)]
        return trained

    trained, said = _made(make, sharing)
    conversations = open_conversations(talks, trained.model, batch_size, tree)
    return Composed(config, None, trained, (*notes, *idle, *report, *said), conversations)


def _made(
    make: Callable[[], P], sharing: Callable[[], AbstractContextManager[Any]]
) -> tuple[P, tuple[str, ...]]:
    """What ``make`` makes, and a line to say where each rank had to make the whole of it."""
    try:
        with sharing() as kept:
            made = make()
        if kept is not None:
            check_complete(made.model)
    except NotByShares as why:
        return make(), (f"each rank makes the whole model before it is spread: {why}",)
    return made, ()


def _cache(config: RunConfig, data: Data) -> FitCache | None:
    """Where runs of one root keep what they learn from the numbers."""
    told = data.fingerprint if config.datasets.fit_cache else None
    return None if told is None else FitCache(Path(config.run_root_dir) / ".fitted", told)
