"""Validation on held-out episodes: loss, and predicted against recorded actions.

Shape legend: N samples, T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from vla_core.policy import VLAPolicy
from vla_core.specs import ActionSpec
from vla_core.transforms import Pipeline

from vla_train.data import Collate, TransformedDataset


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
        count: number of samples.
        batch_size: of one forward pass.
    """

    dataset: TransformedDataset
    collate: Collate
    pipeline: Pipeline
    count: int
    batch_size: int

    def __post_init__(self) -> None:
        n = min(self.count, len(self.dataset))
        self.indices = [int(i) for i in np.linspace(0, len(self.dataset) - 1, n).round()]

    def _batches(self, indices: list[int]) -> Iterator[list[int]]:
        for i in range(0, len(indices), self.batch_size):
            yield indices[i : i + self.batch_size]

    @torch.no_grad()
    def __call__(self, policy: VLAPolicy, device: torch.device) -> dict[str, float]:
        """``val/...`` metrics; the noise is fixed, so that two calls compare."""
        policy.eval()
        action = self.pipeline.output_spec.action
        loss = torch.zeros((), dtype=torch.float64)
        error = torch.zeros((), dtype=torch.float64)
        mean_error, valid, rows = error.clone(), error.clone(), 0
        real_error, real_valid = np.zeros(self.pipeline.input_spec.action.dim), 0.0
        mean = torch.from_numpy(self._mean_action())
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            for chosen in self._batches(self.indices):
                samples = [self.dataset[i] for i in chosen]
                batch = self.collate(samples)
                target, mask = batch.actions, batch.action_mask
                assert target is not None
                assert mask is not None
                shape = (len(chosen), *policy.noise_shape)
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(rows))
                on_device = batch.to(device)
                terms = policy.model(on_device, auxiliary=False)
                loss += sum(term.double().cpu() for term in terms.values()) * len(chosen)
                predicted = policy.model.predict(on_device, noise.to(device)).float().cpu()
                error += ((predicted - target).abs() * mask).sum()
                mean_error += ((mean - target).abs() * mask).sum()
                valid += mask.sum()
                rows += len(chosen)
                for i in range(len(samples)):
                    raw = self.dataset.numeric(chosen[i])
                    real = self.pipeline.inverse(predicted[i, :, : action.dim].numpy(), raw.state)
                    real_error += (np.abs(real - raw.actions) * raw.mask).sum(0)
                    real_valid += raw.mask[:, 0].sum()
        names = dim_names(self.pipeline.input_spec.action)
        per_dim = real_error / max(real_valid, 1)
        return {
            "val/loss": float(loss / rows),
            "val/action_mae": float(error / valid),
            "val/mean_action_mae": float(mean_error / valid),
            **{f"val/mae/{name}": float(value) for name, value in zip(names, per_dim, strict=True)},
        }

    def _mean_action(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """The training set's mean action as the model sees it: what a blind predictor answers."""
        mean = self.pipeline.statistics["action"].mean.astype(np.float32)[None]
        for step in self.pipeline.steps:
            if step.needs_statistics:
                mean = step.actions(mean, None)
        return mean

    @torch.no_grad()
    def save_predictions(
        self, policy: VLAPolicy, device: torch.device, path: Path, episodes: int = 3
    ) -> None:
        """Chunks predicted at every frame of a few held-out episodes, in real units, as ``.npz``."""
        policy.eval()
        spec = self.pipeline.input_spec.action
        by_episode: dict[tuple[int, int], list[int]] = {}
        for i in range(len(self.dataset)):
            by_episode.setdefault(self.dataset.episode(i), []).append(i)
        kept = list(by_episode)
        kept = [kept[int(i)] for i in np.linspace(0, len(kept) - 1, min(episodes, len(kept))).round()]
        order = [(n, frame, i) for n, key in enumerate(kept) for frame, i in enumerate(by_episode[key])]
        predicted = []
        recorded = []
        for chosen in self._batches([i for _, _, i in order]):
            batch = self.collate([self.dataset[i] for i in chosen]).to(device)
            shape = (len(chosen), *policy.noise_shape)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            chunks = policy.model.predict(batch, noise.to(device)).float().cpu().numpy()
            for i, chunk in zip(chosen, chunks, strict=True):
                raw = self.dataset.numeric(i)
                predicted.append(self.pipeline.inverse(chunk, raw.state))
                recorded.append(raw.actions[0])
        np.savez_compressed(
            path,
            episode=np.array([n for n, _, _ in order]),
            frame=np.array([frame for _, frame, _ in order]),
            recorded=np.stack(recorded),
            predicted=np.stack(predicted),
            names=np.array(dim_names(spec)),
            units=np.array(dim_units(spec)),
        )
