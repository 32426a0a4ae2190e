"""Validation on held-out episodes: loss, and predicted against recorded actions.

Shape legend: N samples, T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vla_core.specs import ActionSpec
from vla_core.transforms import Pipeline

from vla_train.data import Collate, TransformedDataset
from vla_train.engine import Engine


def dim_names(spec: ActionSpec) -> list[str]:
    """One name a dim: the group's, numbered if it has several."""
    return [
        group.name if group.dim == 1 else f"{group.name}_{i}"
        for group in spec.groups
        for i in range(group.dim)
    ]


def dim_units(spec: ActionSpec) -> list[str]:
    """One unit a dim."""
    return [group.unit for group in spec.groups for _ in range(group.dim)]


@dataclass
class Validation:
    """Evaluates a policy on a fixed, evenly spaced choice of held-out samples.

    Args:
        dataset: validation samples without augmentation.
        collate: to batches.
        pipeline: for errors in real units.
        noise_shape: of a row's noise.
        count: number of samples.
        batch_size: of one forward pass and rank.
    """

    dataset: TransformedDataset
    collate: Collate
    pipeline: Pipeline
    noise_shape: tuple[int, int]
    count: int
    batch_size: int

    def __post_init__(self) -> None:
        n = min(self.count, len(self.dataset))
        self.indices = [int(i) for i in np.linspace(0, len(self.dataset) - 1, n).round()]

    def _batches(self, indices: list[int]) -> Iterator[list[int]]:
        for i in range(0, len(indices), self.batch_size):
            yield indices[i : i + self.batch_size]

    def _rounds(self, indices: list[int], engine: Engine) -> Iterator[tuple[int, list[int], bool]]:
        """(number, indices, whether they count) of a rank's batches.

        All ranks have equally many, because under sharding each forward pass is the work of all: one that
        has none left repeats the last, which does not count.
        """
        batches = list(self._batches(indices))
        for first in range(0, len(batches), engine.world):
            mine = first + engine.rank
            yield mine, batches[min(mine, len(batches) - 1)], mine < len(batches)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> dict[str, float]:
        """``val/...`` metrics over all ranks; the noise is that of the batch, so that two calls compare."""
        model: Any = engine.whole()
        model.eval()
        device = engine.device
        dims = self.pipeline.input_spec.action.dim
        mean = torch.from_numpy(self._mean_action())
        # loss, rows, error, mean action's error, entries; then errors and entries of each dim in real units.
        sums = torch.zeros(5 + 2 * dims, dtype=torch.float64)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for number, chosen, counts in self._rounds(self.indices, engine):
                seed = number * self.batch_size
                torch.manual_seed(seed)
                batch = self.collate([self.dataset[i] for i in chosen])
                target, mask = batch.actions, batch.action_mask
                assert target is not None
                assert mask is not None
                shape = (len(chosen), *self.noise_shape)
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                on_device = batch.to(device)
                terms = model(on_device, auxiliary=False)
                predicted = model.predict(on_device, noise.to(device)).float().cpu()
                if not counts:
                    continue
                sums[0] += sum(term.double().cpu() for term in terms.values()) * len(chosen)
                sums[1] += len(chosen)
                sums[2] += ((predicted - target).abs() * mask).sum()
                sums[3] += ((mean - target).abs() * mask).sum()
                sums[4] += mask.sum()
                for i, index in enumerate(chosen):
                    raw = self.dataset.numeric(index)
                    real = self.pipeline.inverse(predicted[i, :, :dims].numpy(), raw.state)
                    sums[5 : 5 + dims] += torch.from_numpy((np.abs(real - raw.actions) * raw.mask).sum(0))
                    sums[5 + dims :] += torch.from_numpy(raw.mask.sum(0))
        total = engine.sum(sums.to(device)).cpu().tolist()
        loss, rows, error, mean_error, valid = total[:5]
        errors, entries = total[5 : 5 + dims], total[5 + dims :]
        names = dim_names(self.pipeline.input_spec.action)
        return {
            "val/loss": loss / rows,
            "val/action_mae": error / valid,
            "val/mean_action_mae": mean_error / valid,
            **{f"val/mae/{n}": e / max(count, 1) for n, e, count in zip(names, errors, entries, strict=True)},
        }

    def _mean_action(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """The training set's mean action as the model sees it: what a blind predictor answers."""
        mean = self.pipeline.statistics["action"].mean.astype(np.float32)[None]
        for step in self.pipeline.steps:
            if step.needs_statistics:
                mean = step.actions(mean, None)
        return mean

    @torch.no_grad()
    def save_predictions(self, engine: Engine, path: Path, episodes: int = 3) -> None:
        """Chunks predicted at every frame of a few held-out episodes, in real units, as ``.npz``.

        All ranks compute, the first one writes.
        """
        model: Any = engine.whole()
        model.eval()
        spec = self.pipeline.input_spec.action
        by_episode: dict[tuple[int, int], list[int]] = {}
        for i in range(len(self.dataset)):
            by_episode.setdefault(self.dataset.episode(i), []).append(i)
        kept = list(by_episode)
        kept = [kept[int(i)] for i in np.linspace(0, len(kept) - 1, min(episodes, len(kept))).round()]
        order = [(n, frame, i) for n, key in enumerate(kept) for frame, i in enumerate(by_episode[key])]
        recorded = np.stack([self.dataset.numeric(i).actions[0] for _, _, i in order])
        predicted = np.zeros((len(order), spec.horizon, spec.dim), np.float32)
        for number, chosen, counts in self._rounds([i for _, _, i in order], engine):
            batch = self.collate([self.dataset[i] for i in chosen]).to(engine.device)
            shape = (len(chosen), *self.noise_shape)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            chunks = model.predict(batch, noise.to(engine.device)).float().cpu().numpy()
            for k, (i, chunk) in enumerate(zip(chosen, chunks, strict=True)):
                if counts:
                    raw = self.dataset.numeric(i)
                    predicted[number * self.batch_size + k] = self.pipeline.inverse(chunk, raw.state)
        predicted = engine.sum(torch.from_numpy(predicted).to(engine.device)).cpu().numpy()
        if not engine.is_main:
            return
        np.savez_compressed(
            path,
            episode=np.array([n for n, _, _ in order]),
            frame=np.array([frame for _, frame, _ in order]),
            recorded=recorded,
            predicted=predicted,
            names=np.array(dim_names(spec)),
            units=np.array(dim_units(spec)),
        )
