"""World-model auxiliaries: the backbone's latent should tell what the actions lead to, and where things are.

Shape legend: B rows, N image tokens, H hidden size, L latent width, C geometry channels, T action steps,
A action dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from vla_core.auxiliary import AuxiliaryDims, AuxiliaryInputs, MeanOver, image_tokens
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import Terms, VLMOutput, VLMRequest

from vla_heads.alg1.config import Alg1Config
from vla_heads.alg1.targets import depth_targets, token_targets
from vla_heads.losses import masked_mean

MIN_STD, EPS = 1.0, 1e-4


def _mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))


class Alg1(nn.Module):
    """``dyn_loss``, ``geo_loss`` and ``reg_loss`` on the image tokens of one layer of the backbone.

    The latent ``z [B, L]`` is a linear map of the mean image token. *dyn*: an MLP predicts from ``z`` and the
    action chunk the latent of the observation at the chunk's end, a target without gradient; rows whose
    episode ends before are left out. *geo*: an MLP reconstructs from each image token the frozen geometry
    tokens of its patch, or log depth. *reg*: the standard deviation of every dim of ``z`` over the batch
    should reach 1, and dims should not covary, so that predicting a constant is no solution.

    Nothing of it runs at inference, nor in phase A of the schedule; ``docs/alg1.md`` has the formulas.
    Source: the loss names and the schedule's are those of the MapAnythingLlava3D fork, which does not define
    them; *dyn* follows latent dynamics models (SPR, arXiv 2007.05929), *reg* is VICReg's (arXiv 2105.04906).
    """

    Config: ClassVar[type] = Alg1Config
    mean_over: Mapping[str, MeanOver] = MappingProxyType(
        {"dyn_loss": "futures", "geo_loss": "views", "reg_loss": "rows"}
    )

    def __init__(self, config: Alg1Config, dims: AuxiliaryDims) -> None:
        super().__init__()
        self.config, self.dims = config, dims
        self.layer = dims.top_layer if config.layer is None else config.layer
        if not 0 <= self.layer <= dims.n_layers:
            raise ConfigError(f"layer: {self.layer} must be from 0 to {dims.n_layers}, the backbone's layers")
        self.request = VLMRequest(layers=(self.layer,))
        dyn, geo, reg = config.loss_w_dyn > 0, config.loss_w_geo > 0, config.loss_w_reg > 0
        self.target = _target(config, dims) if geo else None
        needs = {"future"} if dyn else set()
        self.needs = frozenset(needs | ({"depth"} if self.target == "depth" else set()))
        self.min_rows = 2 if reg else 1
        hidden, latent = dims.hidden_size, config.latent_dim
        self.latent = nn.Linear(hidden, latent) if dyn or reg else None
        chunk = dims.horizon * dims.action_dim
        self.dynamics = _mlp(latent + chunk, config.hidden_dim, latent) if dyn else None
        channels = 1 if self.target == "depth" else dims.geometry_dim
        self.decoder = _mlp(hidden, config.hidden_dim, channels) if geo and channels else None

    @classmethod
    def build(cls, config: Alg1Config, dims: AuxiliaryDims) -> Alg1 | None:
        """The module, or None where every weight is 0.

        Raises:
            ConfigError: ``geo_target: tokens`` without a geometry encoder, or a layer that does not exist.
        """
        if config.loss_w_dyn == config.loss_w_geo == config.loss_w_reg == 0:
            return None
        return cls(config, dims)

    def weights(self, step: int) -> Mapping[str, float]:
        """Term -> weight at an optimisation step (the first is 1)."""
        config = self.config
        values = {"dyn_loss": config.loss_w_dyn, "geo_loss": config.loss_w_geo, "reg_loss": config.loss_w_reg}
        return {name: config.ramp(step) * value for name, value in values.items() if value > 0}

    def forward(self, inputs: AuxiliaryInputs | None) -> Terms:
        """Unweighted terms in fp32; with None a single ``idle``: 0, with a zero gradient for every parameter.

        Raises:
            UserError: depth that the geometry term needs is missing, or a batch of one row with ``reg_loss``.
        """
        if inputs is None:
            return {"idle": torch.stack([0.0 * p.float().sum() for p in self.parameters()]).sum()}
        view_mask, terms = inputs.batch.view_mask, {}
        tokens, valid = image_tokens(inputs.vlm, self.layer, view_mask, self.dims.grid)
        if self.latent is not None:
            latent = self._latent(tokens, valid)
            if self.dynamics is not None:
                terms["dyn_loss"] = self._dynamics(latent, inputs)
            if self.config.loss_w_reg > 0:
                terms["reg_loss"] = spread_loss(latent)
        if self.decoder is not None:
            terms["geo_loss"] = self._geometry(tokens, valid, inputs)
        return terms

    def _latent(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """The latent ``[B, L]`` of ``tokens [B, N, H]`` where ``valid [B, N]``, in fp32."""
        assert self.latent is not None
        count = valid.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (tokens.float() * valid[..., None]).sum(dim=1) / count
        out: Tensor = self.latent(mean.to(self.latent.weight.dtype)).float()
        return out

    def _dynamics(self, latent: Tensor, inputs: AuxiliaryInputs) -> Tensor:
        assert self.dynamics is not None
        assert self.latent is not None
        batch, future = inputs.batch, inputs.future
        assert batch.future is not None
        assert isinstance(future, VLMOutput)
        assert batch.actions is not None
        assert batch.action_mask is not None
        with torch.no_grad():
            ends = image_tokens(future, self.layer, batch.future.view_mask, self.dims.grid)
            target = self._latent(*ends)
        actions = batch.actions.where(batch.action_mask, 0.0).flatten(1)
        told = torch.cat([latent, actions.to(latent.dtype)], dim=1)
        predicted = self.dynamics(told.to(self.latent.weight.dtype)).float()
        known = batch.future_mask
        assert known is not None
        return masked_mean((predicted - target) ** 2, known[:, None])

    def _geometry(self, tokens: Tensor, valid: Tensor, inputs: AuxiliaryInputs) -> Tensor:
        assert self.decoder is not None
        if self.target == "depth":
            cameras = inputs.batch.cameras
            if cameras is None or cameras.depth is None:
                raise UserError(
                    "cameras.depth: missing; framework.auxiliary.geo_target is depth, and no view of the "
                    "batch has recorded depth; record it, or set loss_w_geo: 0"
                )
            target, known = depth_targets(cameras.depth, self.dims.grid, cameras.known.depth)
            valid = valid & known
        else:
            assert inputs.geometry is not None
            target = token_targets(inputs.geometry.tokens, self.dims.grid)
        decoded = self.decoder(tokens.to(next(self.decoder.parameters()).dtype)).float()
        return masked_mean((decoded - target) ** 2, valid[..., None])


def spread_loss(latent_BL: Tensor) -> Tensor:
    """VICReg's variance and covariance terms over the rows of a batch (of one process).

    Raises:
        UserError: fewer than two rows have no variance.
    """
    rows, dims = latent_BL.shape
    if rows < 2:
        raise UserError("reg_loss: a batch of one row has no variance; use at least 2, or set loss_w_reg: 0")
    centred = latent_BL - latent_BL.mean(dim=0)
    deviation = (centred.square().sum(dim=0) / (rows - 1) + EPS).sqrt()
    covariance = centred.mT @ centred / (rows - 1)
    off = covariance.square().sum() - covariance.diagonal().square().sum()
    return torch.relu(MIN_STD - deviation).mean() + off / dims


def _target(config: Alg1Config, dims: AuxiliaryDims) -> str:
    if config.geo_target == "auto":
        return "depth" if dims.geometry_dim is None else "tokens"
    if config.geo_target == "tokens" and dims.geometry_dim is None:
        raise ConfigError(
            "geo_target: tokens needs a geometry encoder; set framework.geometry and framework.fusion, or "
            "geo_target: depth, or loss_w_geo: 0"
        )
    return config.geo_target
