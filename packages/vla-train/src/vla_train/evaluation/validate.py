"""Validation on held-out episodes: loss, and predicted against recorded actions.

Shape legend: N samples, T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from vla_core.axes import dim_names
from vla_core.specs import ActionSpec
from vla_core.transforms import Pipeline
from vla_core.types import Float

from vla_train.checkpointing.small_files import into
from vla_train.dataloading.data import Collate, TransformedDataset
from vla_train.engine import Engine
from vla_train.evaluation.against_mean import ERROR, MEAN
from vla_train.evaluation.group_errors import StepErrors, of_groups

Say = Callable[[str], None]
"""Told what is under way, again and again; it decides what is worth a line."""


def dim_units(spec: ActionSpec) -> list[str]:
    """One unit a dim."""
    return [group.unit for group in spec.groups for _ in range(group.dim)]


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of one data set, without augmentation, and its robot's pipeline."""

    label: str
    dataset: TransformedDataset
    pipeline: Pipeline

    @property
    def robot(self) -> str:
        """The embodiment."""
        return self.pipeline.input_spec.embodiment


@dataclass(frozen=True)
class _Sums:
    """Of one data set over all ranks; ``blind``: the mean action's errors a dim, in real units."""

    loss: float
    rows: float
    error: float
    mean_error: float
    valid: float
    blind: list[float]
    steps: StepErrors


@dataclass
class Validation:
    """Evaluates a policy on a fixed, evenly spaced choice of held-out samples.

    Args:
        parts: one a data set.
        collate: to batches.
        noise_shape: of a row's noise.
        count: number of samples, shared equally between the data sets.
        batch_size: of one forward pass and rank.
    """

    parts: Sequence[HeldOut]
    collate: Collate
    noise_shape: tuple[int, int]
    count: int
    batch_size: int

    def _chosen(self, dataset: TransformedDataset) -> list[int]:
        n = min(max(1, self.count // len(self.parts)), len(dataset))
        return [int(i) for i in np.linspace(0, len(dataset) - 1, n).round()]

    def _batches(self, indices: list[int]) -> Iterator[list[int]]:
        for i in range(0, len(indices), self.batch_size):
            yield indices[i : i + self.batch_size]

    def _rounds(
        self, indices: list[int], engine: Engine, say: Say, what: str
    ) -> Iterator[tuple[int, list[int], bool]]:
        """(number, indices, whether they count) of a rank's batches; ``what`` of them is said before each.

        All ranks have equally many, because under sharding each forward pass is the work of all: one that
        has none left repeats the last, which does not count.
        """
        batches = list(self._batches(indices))
        for first in range(0, len(batches), engine.world):
            say(f"{what}: {first * self.batch_size} of {len(indices)} samples")
            mine = first + engine.rank
            yield mine, batches[min(mine, len(batches) - 1)], mine < len(batches)

    def __call__(self, engine: Engine, say: Say) -> dict[str, float]:
        """``val/...`` metrics over all ranks; the noise is that of the batch, so that two calls compare.

        Of several data sets also ``data/LABEL/val_loss`` and ``val_action_mae``; the ``val/`` ones are over
        all.
        """
        return _metrics([(part, self._measure(part, engine, say)) for part in self.parts])

    @property
    def names(self) -> frozenset[str]:
        """Of all that a call returns."""
        return frozenset(_metrics([(part, _nothing(part.pipeline.input_spec.action)) for part in self.parts]))

    @torch.no_grad()
    def _measure(self, part: HeldOut, engine: Engine, say: Say) -> _Sums:
        model: Any = engine.whole()
        model.eval()
        device, pipeline = engine.device, part.pipeline
        dims, inner = pipeline.input_spec.action.dim, pipeline.output_spec.action
        answer = _mean_action(pipeline)
        mean = torch.from_numpy(answer)
        steps = pipeline.input_spec.action.horizon
        # loss, rows, error, mean action's error, entries; then in real units the mean action's error of each
        # dim, and of each step and dim the policy's error, its square, and entries.
        sums = torch.zeros(5 + dims + 3 * steps * dims, dtype=torch.float64)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            rounds = self._rounds(self._chosen(part.dataset), engine, say, f"validation on {part.label}")
            for number, chosen, counts in rounds:
                seed = number * self.batch_size
                torch.manual_seed(seed)
                batch = self.collate([part.dataset[i] for i in chosen])
                target, mask = batch.actions, batch.action_mask
                assert target is not None
                assert mask is not None
                shape = (len(chosen), *self.noise_shape)
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                on_device = batch.to(device)
                with engine.inferring():
                    terms = model(on_device, auxiliary=False)
                    predicted = model.predict(on_device, noise.to(device)).float().cpu()
                if not counts:
                    continue
                sums[0] += sum(term.double().cpu() for term in terms.values()) * len(chosen)
                sums[1] += len(chosen)
                sums[2] += ((predicted - target).abs() * mask).sum()
                # Dims (and steps) of larger robots are padding here, and masked.
                missing = [
                    size - own for size, own in zip(target.shape[:0:-1], mean.shape[::-1], strict=True)
                ]
                blind = functional.pad(mean, (0, missing[0], 0, missing[1]))
                sums[3] += ((blind - target).abs() * mask).sum()
                sums[4] += mask.sum()
                for i, index in enumerate(chosen):
                    raw = part.dataset.numeric(index)
                    real = pipeline.inverse(predicted[i, : inner.horizon, : inner.dim].numpy(), raw.state)
                    same = pipeline.inverse(answer, raw.state)
                    off, blind_off = (
                        (one - raw.actions).astype(np.float64) * raw.mask for one in (real, same)
                    )
                    of_steps = np.stack([np.abs(off), off**2, raw.mask])
                    sums[5:] += torch.from_numpy(
                        np.concatenate([np.abs(blind_off).sum(0), of_steps.reshape(-1)])
                    )
        total = engine.sum(sums.to(device)).cpu()
        loss, rows, error, mean_error, valid = total[:5].tolist()
        of_steps = total[5 + dims :].reshape(3, steps, dims).numpy()
        return _Sums(
            loss, rows, error, mean_error, valid, total[5 : 5 + dims].tolist(), StepErrors(*of_steps)
        )

    def save_predictions(self, engine: Engine, path: Path, say: Say, episodes: int = 3) -> None:
        """Chunks predicted at every frame of a few held-out episodes, in real units, as ``.npz``.

        The first data set's go to ``path``, those of each other one to ``path`` with its label in the name.
        All ranks compute, the first one writes.
        """
        for i, part in enumerate(self.parts):
            name = path if i == 0 else path.with_name(f"{path.stem}-{part.label}{path.suffix}")
            self._save_predictions(part, engine, name, say, episodes)

    @torch.no_grad()
    def _save_predictions(self, part: HeldOut, engine: Engine, path: Path, say: Say, episodes: int) -> None:
        model: Any = engine.whole()
        model.eval()
        dataset, pipeline = part.dataset, part.pipeline
        spec, inner = pipeline.input_spec.action, pipeline.output_spec.action
        by_episode: dict[tuple[int, int], list[int]] = {}
        for i in range(len(dataset)):
            by_episode.setdefault(dataset.episode(i), []).append(i)
        kept = list(by_episode)
        kept = [kept[int(i)] for i in np.linspace(0, len(kept) - 1, min(episodes, len(kept))).round()]
        order = [(n, frame, i) for n, key in enumerate(kept) for frame, i in enumerate(by_episode[key])]
        recorded = np.stack([dataset.numeric(i).actions[0] for _, _, i in order])
        predicted = np.zeros((len(order), spec.horizon, spec.dim), np.float32)
        indices = [i for _, _, i in order]
        for number, chosen, counts in self._rounds(indices, engine, say, f"predictions for {path.name}"):
            batch = self.collate([dataset[i] for i in chosen]).to(engine.device)
            shape = (len(chosen), *self.noise_shape)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            with engine.inferring():
                chunks = model.predict(batch, noise.to(engine.device)).float().cpu().numpy()
            for k, (i, chunk) in enumerate(zip(chosen, chunks, strict=True)):
                if counts:
                    raw = dataset.numeric(i)
                    chunk = chunk[: inner.horizon, : inner.dim]
                    predicted[number * self.batch_size + k] = pipeline.inverse(chunk, raw.state)
        predicted = engine.sum(torch.from_numpy(predicted).to(engine.device)).cpu().numpy()

        def write() -> None:
            with into(path):
                np.savez_compressed(
                    path,
                    episode=np.array([n for n, _, _ in order]),
                    frame=np.array([frame for _, frame, _ in order]),
                    recorded=recorded,
                    predicted=predicted,
                    names=np.array(dim_names(spec.groups)),
                    units=np.array(dim_units(spec)),
                )

        engine.agree(write)


def _mean_action(pipeline: Pipeline) -> Float:
    """The training set's mean action ``[T, A]`` as the model sees it: what a blind predictor answers.

    A whole chunk: its steps may be normalised each in its own way.
    """
    mean = pipeline.statistics["action"].mean.astype(np.float32)[None]
    mean = np.repeat(mean, pipeline.output_spec.action.horizon, axis=0)
    for step in pipeline.steps:
        if step.needs_statistics:
            mean = step.actions(mean, None)
    return mean


def _metrics(measured: Sequence[tuple[HeldOut, _Sums]]) -> dict[str, float]:
    sums = [one for _, one in measured]
    out = {
        "val/loss": sum(s.loss for s in sums) / sum(s.rows for s in sums),
        "val/action_mae": sum(s.error for s in sums) / sum(s.valid for s in sums),
        "val/mean_action_mae": sum(s.mean_error for s in sums) / sum(s.valid for s in sums),
    }
    if len(measured) > 1:
        for part, s in measured:
            out[f"data/{part.label}/val_loss"] = s.loss / s.rows
            out[f"data/{part.label}/val_action_mae"] = s.error / s.valid
    by_step = [(p.label, p.robot, p.pipeline.input_spec.action, s.steps) for p, s in measured]
    return {**out, **_of_dims(measured), **of_groups(by_step)}


def _nothing(spec: ActionSpec) -> _Sums:
    zeros = np.zeros((3, spec.horizon, spec.dim))
    return _Sums(0.0, 1.0, 0.0, 0.0, 1.0, [0.0] * spec.dim, StepErrors(*zeros))


def _of_dims(measured: Sequence[tuple[HeldOut, _Sums]]) -> dict[str, float]:
    """``val/mae/DIM`` in real units, with several robots ``val/mae/ROBOT/DIM``; data sets of one together.

    ``val/mean_mae/DIM`` beside it: the error of always answering the mean action.
    """
    several = len({part.robot for part, _ in measured}) > 1
    found: dict[str, tuple[float, float]] = {}
    for part, sums in measured:
        names = dim_names(part.pipeline.input_spec.action.groups)
        entries = sums.steps.counts.sum(0)
        for prefix, errors in ((ERROR, sums.steps.absolute.sum(0)), (MEAN, sums.blind)):
            for name, error, count in zip(names, errors, entries, strict=True):
                key = f"{prefix}{part.robot}/{name}" if several else f"{prefix}{name}"
                before = found.get(key, (0.0, 0.0))
                found[key] = before[0] + float(error), before[1] + float(count)
    return {key: error / max(count, 1) for key, (error, count) in found.items()}
