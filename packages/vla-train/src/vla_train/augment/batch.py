"""Random changes of a training batch. Shapes: B rows, V views, D state dims, H, W pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from vla_core.batch import Batch
from vla_core.errors import ConfigError

from vla_train.augment.colour import recolour
from vla_train.augment.config import AugmentationConfig
from vla_train.augment.geometry import Move, make_move, move_cameras, move_images

_STREAM = 2
"""Sets these draws apart from others of the same (seed, rank, step, micro-batch)."""


@dataclass(frozen=True)
class _Views:
    """Uniform numbers from -1 to 1, ``[B, V]`` each; in this order whatever is switched on."""

    angle: Tensor
    share: Tensor
    ratio: Tensor
    x: Tensor
    y: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor


class Augmentation:
    """Changes batches as configured; the draws are a function of (seed, rank, step, micro-batch) alone.

    They are drawn on the CPU, a few numbers a view, so that every device gets the same ones and the streams
    of noise and dropout stay what they are without augmentation.

    Args:
        config: what and how far.
        seed: of the run.
        rank: of the process.
        frames: how many views in a row are the history of one camera, and share a draw.
    """

    def __init__(self, config: AugmentationConfig, seed: int, rank: int, frames: int = 1) -> None:
        self.config, self.seed, self.rank, self.frames = config, seed, rank, frames

    def check(self, has_state: bool) -> None:
        """Raise ConfigError if states are to change and the policy gets none."""
        if self.config.changes_state and not has_state:
            which = "state_dropout" if self.config.state_dropout else "state_noise"
            raise ConfigError(
                f"datasets.augmentation.{which}: the policy gets no state vector (the robot has none, or "
                "it is part of the prompt); set it to 0"
            )

    @torch.no_grad()
    def __call__(self, batch: Batch, step: int, micro_batch: int = 0) -> Batch:
        """The batch with new pictures, cameras and states; nothing in ``batch`` itself changes.

        The observation at the chunk's end moves and changes colour as the present one does, so that the two
        differ by what happened alone.

        Raises:
            ConfigError: states are to change, and the batch has none.
        """
        entropy = np.random.SeedSequence((self.seed, self.rank, step, micro_batch, _STREAM))
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        config, (rows, views) = self.config, batch.images.shape[:2]
        numbers = 2 * torch.rand(9, rows, -(-views // self.frames), generator=generator) - 1
        numbers = numbers.repeat_interleave(self.frames, -1)[..., :views]
        draws = _Views(*numbers.to(batch.images.device, non_blocking=True))
        if config.moves or config.recolours:
            batch = self._pictures(batch, draws)
            if batch.future is not None:
                batch = replace(batch, future=self._pictures(batch.future, draws))
        return self._state(batch, generator) if config.changes_state else batch

    def _pictures(self, batch: Batch, draws: _Views) -> Batch:
        config, images, cameras = self.config, batch.images, batch.cameras
        new = images.float()
        if config.moves:
            move = self._move(batch, draws)
            new = move_images(new, move)
            cameras = None if cameras is None else move_cameras(cameras, move)
        if config.recolours:
            jitter = (config.brightness, config.contrast, config.saturation)
            drawn = (draws.brightness, draws.contrast, draws.saturation)
            factors = torch.stack([1 + j * d for j, d in zip(jitter, drawn, strict=True)], -1)
            new = recolour(new, factors, draws.hue * (2 * math.pi * config.hue))
        if images.dtype == torch.uint8:
            new = new.round_().clamp_(0, 255)
        else:
            new = new.clamp_(0, 1)
        return replace(batch, images=new.to(images.dtype), cameras=cameras)

    def _move(self, batch: Batch, draws: _Views) -> Move:
        config = self.config
        return make_move(
            draws.angle * math.radians(config.rotation),
            1 - (1 - config.crop_scale) * (draws.share + 1) / 2,
            (draws.ratio * math.log(config.crop_ratio)).exp(),
            ((draws.x + 1) / 2, (draws.y + 1) / 2),
            (batch.images.shape[-2], batch.images.shape[-1]),
            batch.cameras,
        )

    def _state(self, batch: Batch, generator: torch.Generator) -> Batch:
        config, state, mask = self.config, batch.state, batch.state_mask
        self.check(state is not None)
        assert state is not None
        # Both are drawn whatever is on, so that one does not change the other.
        noise = torch.randn(state.shape, generator=generator).to(state.device, non_blocking=True)
        kept = torch.rand(len(batch), 1, generator=generator) >= config.state_dropout
        kept = kept.to(state.device, non_blocking=True)
        mask = torch.ones_like(state, dtype=torch.bool) if mask is None else mask
        mask = mask & kept
        state = torch.where(mask, state + config.state_noise * noise, 0.0)
        return replace(batch, state=state, state_mask=mask)
