"""The YAML node of ``alg1``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_core.ranges import Count, Layer, Natural, NonNegative, check_ranges


@dataclass(frozen=True)
class Alg1Config:
    """Weights, schedule and sizes; a term of weight 0 is not built.

    Args:
        loss_w_dyn: weight of ``dyn_loss``: the latent at the chunk's end from the latent now and the actions.
        loss_w_geo: weight of ``geo_loss``: the geometry of each image patch, from its token in the backbone.
        loss_w_reg: weight of ``reg_loss``: variance and covariance of the latent, against collapse.
        sagr_phase_a_steps: optimisation steps without auxiliaries (phase A).
        sagr_phase_b_ramp_steps: steps in which the weights rise linearly to their values (phase B).
        layer: whose hidden states are the latent's source; null: the highest that the head reads.
        latent_dim: width of the latent.
        hidden_dim: width inside the predictors.
        geo_target: ``tokens`` of the frozen geometry encoder, recorded ``depth``, or (``auto``) tokens where
            there is an encoder and depth otherwise.
    """

    loss_w_dyn: NonNegative = 0.0
    loss_w_geo: NonNegative = 0.0
    loss_w_reg: NonNegative = 0.0
    sagr_phase_a_steps: Natural = 0
    sagr_phase_b_ramp_steps: Natural = 0
    layer: Layer | None = None
    latent_dim: Count = 256
    hidden_dim: Count = 512
    geo_target: Literal["auto", "tokens", "depth"] = "auto"

    def __post_init__(self) -> None:
        check_ranges(self)

    def ramp(self, step: int) -> float:
        """Share of the weights at a step (the first is 1): 0 in phase A, then linear, then 1."""
        after = step - self.sagr_phase_a_steps
        if after <= 0:
            return 0.0
        return min(1.0, after / self.sagr_phase_b_ramp_steps) if self.sagr_phase_b_ramp_steps else 1.0
