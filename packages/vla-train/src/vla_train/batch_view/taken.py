"""The batch of a step as training would make it, and what each row of it was recorded as.

Shapes: B rows, V views, H, W pixels, T action steps, A action dims, D dims of a group, S tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from vla_core.batch import Batch, Role
from vla_core.config import Tree, build_config
from vla_core.errors import UserError
from vla_core.specs import GroupSpec
from vla_core.transforms import Pipeline
from vla_core.types import Bool, Float, Image
from vla_vlm.common.collator import PromptCollator

from vla_train.augment import Augmentation, moments
from vla_train.composition import Composed, compose
from vla_train.config import RunConfig
from vla_train.dataloading.data import InfiniteBatches, Numeric
from vla_train.dataloading.robot_data import RobotData


@dataclass(frozen=True)
class Line:
    """A tensor of the batch: name, dtype, shape, least and greatest value, and a mask's share of True."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float
    high: float
    share: float | None

    @property
    def ends(self) -> tuple[str, str]:
        """``low`` and ``high`` as text: whole numbers with all their digits."""
        digits = ".4g" if self.dtype.startswith("float") else ".0f"
        return format(self.low, digits), format(self.high, digits)


@dataclass(frozen=True)
class Part:
    """A group of a vector, in one place of its way.

    Args:
        group: name, unit and representation there.
        values: ``[D]`` of a state, ``[T, D]`` of actions.
    """

    group: GroupSpec
    values: Float


@dataclass(frozen=True)
class ShownRow:
    """A row of the batch.

    Args:
        label, embodiment: its data set and robot.
        episode, frame: where it was recorded.
        instruction: after the transforms.
        prompt: the tokens as text; what is no text is named and counted.
        views: camera -> picture ``[H, W, 3]`` as the policy gets it; None: missing.
        state, action: what was recorded, in the robot's units.
        model_state, model_action: what the policy gets, without its padding.
        mask: ``[T, A]`` of the batch, with its padding: False enters no loss.
        dims: of the robot's own actions, of A.
        state_dims: the same of its state.
        apart: how far un-normalised targets are from what was recorded, at most, in the robot's units.
    """

    label: str
    embodiment: str
    episode: int
    frame: int
    instruction: str
    prompt: str
    views: Mapping[str, Image | None]
    state: Sequence[Part]
    action: Sequence[Part]
    model_state: Sequence[Part]
    model_action: Sequence[Part]
    mask: Bool
    dims: int
    state_dims: int
    apart: float
    control_hz: float


@dataclass(frozen=True)
class Taken:
    """A batch of a run: which one, what is in it, and its first rows."""

    index: int
    step: int
    seed: int
    framework: str
    epoch: str
    counts: Mapping[str, int]
    lines: Sequence[Line]
    rows: Sequence[ShownRow]
    size: int
    augmented: bool


def take(tree: Tree, index: int = 0, most: int = 4) -> Taken:
    """Batch ``index`` of the first process of a run.

    Args:
        tree: the config.
        index: of its micro-batches from the start of the run.
        most: rows to show.

    Raises:
        UserError: whatever training would refuse, or a run without robots.
    """
    tree = Tree(_undecoded(tree.data), tree.origins)
    config = build_config(RunConfig, tree.data, "", tree)
    if config.job == "vlm":
        raise UserError("this config trains on conversations alone: there is no robot's batch to show")
    composed = compose(tree, config, device="meta", weights=False)
    data = RobotData(composed, composed.model)
    keys = next(iter(InfiniteBatches(data.mixture, config.trainer.batch_size, start=index)))
    samples = [data.dataset[key] for key in keys]
    batch = data.collate(samples)
    micro = config.trainer.gradient_accumulation_steps
    frames = moments(composed.policy.specs, config.datasets.augmentation)
    augmentation = Augmentation(config.datasets.augmentation, config.seed, 0, frames)
    augmentation.check(composed.policy.collator.state_dim > 0)
    batch = augmentation(batch, index // micro + 1, index % micro)
    places = [data.mixture.locate(position) for position, _ in keys]
    labels = [data.labels[k] for k, _ in places]
    rows = []
    for i in range(min(most, len(samples))):
        recorded = data.dataset.numeric(keys[i][1])
        rows.append(_row(composed, batch, i, labels[i], samples[i], recorded))
    settings = config.datasets.augmentation
    return Taken(
        index=index,
        step=index // micro + 1,
        seed=config.seed,
        framework=composed.policy.framework,
        epoch=data.epoch,
        counts={label: labels.count(label) for label in data.labels},
        lines=list(_lines(batch)),
        rows=rows,
        size=len(batch),
        augmented=settings.moves or settings.recolours or settings.changes_state,
    )


def _undecoded(data: dict[str, Any]) -> dict[str, Any]:
    """The config without caches in memory: for one batch nothing else is decoded."""
    sets: Any = data.get("datasets")
    if not isinstance(sets, dict):
        return data

    def plain(node: Any) -> Any:
        return {**node, "cache": "none"} if isinstance(node, dict) and node.get("cache") == "ram" else node

    changed = {**sets, "ram_cache": False}
    if isinstance(sets.get("train"), list):
        changed["train"] = [plain(node) for node in sets["train"]]
    if isinstance(sets.get("mixtures"), dict):
        changed["mixtures"] = {
            name: [plain(node) for node in nodes] if isinstance(nodes, list) else nodes
            for name, nodes in sets["mixtures"].items()
        }
    return {**data, "datasets": changed}


def _row(composed: Composed, batch: Batch, i: int, label: str, sample: Any, recorded: Numeric) -> ShownRow:
    name = sample.observation.embodiment
    pipeline, collator = composed.policy.pipelines[name], composed.policy.collator
    before, after = pipeline.input_spec, pipeline.output_spec
    assert batch.actions is not None
    assert batch.action_mask is not None
    actions, mask = batch.actions[i].numpy(), batch.action_mask[i].numpy()
    horizon, dims, state_dims = after.action.horizon, after.action.dim, after.observation.state_dim
    state = None if batch.state is None else batch.state[i, :state_dims].numpy()
    return ShownRow(
        label=label,
        embodiment=name,
        episode=sample.meta.get("episode", -1),
        frame=sample.meta.get("frame", -1),
        instruction=sample.observation.instruction,
        prompt=prompt_text(collator.text, batch, i),
        views=_views(batch, i, collator.cameras[name]),
        state=list(_parts(before.observation.state, recorded.state)),
        action=list(_parts(before.action.groups, recorded.actions)),
        model_state=list(_parts(after.observation.state, state)),
        model_action=list(_parts(after.action.groups, actions[:horizon, :dims])),
        mask=mask,
        dims=dims,
        state_dims=state_dims,
        apart=_apart(pipeline, sample.actions, recorded),
        control_hz=before.action.control_hz,
    )


def _parts(groups: Sequence[GroupSpec], values: Float | None) -> Iterator[Part]:
    start = 0
    for group in groups if values is not None else ():
        assert values is not None
        yield Part(group, values[..., start : start + group.dim])
        start += group.dim


def _apart(pipeline: Pipeline, targets: Float, recorded: Numeric) -> float:
    """Largest difference between recorded actions and un-normalised targets, over steps that count."""
    real = recorded.mask.any(axis=1)
    back = pipeline.inverse(targets, recorded.state)
    return float(np.abs(back - recorded.actions)[real].max(initial=0.0))


def _views(batch: Batch, i: int, cameras: Sequence[str]) -> dict[str, NDArray[np.uint8] | None]:
    """By the names of the robot's cameras; places beyond them are other robots' and stay empty."""
    found: dict[str, NDArray[np.uint8] | None] = {}
    for v in range(batch.images.shape[1]):
        name = cameras[v] if v < len(cameras) else f"view {v}"
        there = bool(batch.view_mask[i, v])
        found[name] = batch.images[i, v].permute(1, 2, 0).contiguous().numpy() if there else None
    return found


def prompt_text(collator: Any, batch: Batch, i: int) -> str:
    """The tokens of a row as text; reserved and answer tokens are named with their number."""
    if not isinstance(collator, PromptCollator):
        return ""
    ids = batch.tokens.input_ids[i].tolist()
    roles = batch.tokens.roles[i].tolist()
    parts: list[str] = []
    start = 0
    while start < len(ids):
        kind = _said(roles[start])
        stop = start
        while stop < len(ids) and _said(roles[stop]) == kind:
            stop += 1
        if kind is None:
            parts.append(collator.tokenizer.decode(ids[start:stop], skip_special_tokens=False))
        else:
            parts.append(f"<{kind} x {stop - start}>")
        start = stop
    return "".join(parts)


def _said(role: int) -> str | None:
    """How a token that is no text is called."""
    return None if role in (Role.TEXT, Role.INSTRUCTION) else Role(role).name.lower()


def _lines(value: Any, name: str = "") -> Iterator[Line]:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if not value.numel():
            return
        numbers = value.double()
        share = float(numbers.mean()) if kind == "bool" else None
        yield Line(name, kind, tuple(value.shape), float(numbers.min()), float(numbers.max()), share)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _lines(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
