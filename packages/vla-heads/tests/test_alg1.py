"""alg1: each term against its formula, where its gradient goes, and the schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from vla_core.auxiliary import Auxiliary, AuxiliaryDims, AuxiliaryInputs
from vla_core.batch import Batch, Cameras, TokenFields
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import GeometryFeatures, VLMOutput
from vla_heads.alg1 import Alg1, Alg1Config
from vla_heads.alg1.auxiliary import spread_loss

B, V, H, C, GRID, T, A, S = 3, 2, 8, 6, (2, 2), 4, 2, 12
N = V * GRID[0] * GRID[1]
DIMS = AuxiliaryDims(H, 3, 2, GRID, V, A, T, geometry_dim=C)
ALL = {"loss_w_dyn": 0.5, "loss_w_geo": 0.25, "loss_w_reg": 0.125, "latent_dim": 5, "hidden_dim": 7}


def output(seed: int, missing: bool = False) -> VLMOutput:
    """Image tokens at places 2 to 9; with ``missing``, those of row 0's second view are padding."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, S, H, generator=generator, requires_grad=True)
    image = torch.zeros(B, S, dtype=torch.bool)
    image[:, 2 : 2 + N] = True
    mask = torch.ones(B, S, dtype=torch.bool)
    if missing:
        image[0, 2 + N // 2 :] = False
        mask[0, 2 + N // 2 :] = False
    return VLMOutput({2: hidden}, mask, {"image": image})


def batch(missing: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(9)
    tokens = TokenFields(*(torch.zeros(B, S, dtype=torch.long) for _ in range(3)))
    views = torch.ones(B, V, dtype=torch.bool)
    if missing:
        views[0, 1] = False
    images = torch.zeros(B, V, 3, 4, 4, dtype=torch.uint8)
    shared = {"images": images, "view_mask": views, "tokens": tokens, "embodiment": torch.zeros(B).long()}
    depth = 0.5 + torch.rand(B, V, 4, 4, generator=generator)
    return Batch(
        **shared,
        actions=torch.randn(B, T, A, generator=generator),
        action_mask=torch.ones(B, T, A, dtype=torch.bool),
        cameras=Cameras(depth=depth),
        future=Batch(**shared),
        future_mask=torch.tensor([True, False, True]),
    )


def geometry() -> GeometryFeatures:
    tokens = torch.randn(B, V, 4, 4, C, generator=torch.Generator().manual_seed(3), requires_grad=True)
    return GeometryFeatures(tokens)


def build(dims: AuxiliaryDims = DIMS, **options: Any) -> Alg1:
    torch.manual_seed(0)
    auxiliary = Alg1.build(Alg1Config(**{**ALL, **options}), dims)
    assert auxiliary is not None
    return auxiliary


def inputs(missing: bool = False) -> AuxiliaryInputs:
    return AuxiliaryInputs(output(0, missing), batch(missing), geometry(), output(1, missing))


def test_it_is_an_auxiliary_and_asks_for_what_its_terms_read() -> None:
    auxiliary = build()
    assert isinstance(auxiliary, Auxiliary)
    assert auxiliary.request.layers == (2,)
    assert (auxiliary.needs, auxiliary.min_rows) == ({"future"}, 2)
    assert build(loss_w_dyn=0.0, geo_target="depth").needs == {"depth"}
    assert build(loss_w_reg=0.0).min_rows == 1
    assert Alg1.build(Alg1Config(), DIMS) is None
    only = build(loss_w_dyn=0.0, loss_w_reg=0.0)
    assert only.latent is None
    assert only.dynamics is None
    assert set(only(inputs())) == {"geo_loss"}


def test_dynamics_is_the_error_of_the_predicted_latent_in_rows_that_have_an_end() -> None:
    auxiliary, given = build(), inputs()
    terms = auxiliary(given)
    assert auxiliary.latent is not None
    assert auxiliary.dynamics is not None
    assert given.future is not None
    now, then = (
        auxiliary.latent(out.hidden[2][:, 2 : 2 + N].mean(dim=1)) for out in (given.vlm, given.future)
    )
    assert given.batch.actions is not None
    predicted = auxiliary.dynamics(torch.cat([now, given.batch.actions.flatten(1)], dim=1))
    wanted = (predicted - then)[[0, 2]].square().mean()
    torch.testing.assert_close(terms["dyn_loss"], wanted)


def test_the_target_of_dynamics_gets_no_gradient_and_the_present_does() -> None:
    auxiliary, given = build(), inputs()
    auxiliary(given)["dyn_loss"].backward()
    assert given.future is not None
    assert given.future.hidden[2].grad is None
    present = given.vlm.hidden[2].grad
    assert present is not None
    assert present[[0, 2], 2 : 2 + N].any()
    assert not present[1].any(), "a chunk that ends after its episode teaches nothing"
    assert not present[:, :2].any(), "text tokens are no part of the latent"


def test_geometry_reconstructs_frozen_tokens_at_their_patches() -> None:
    auxiliary, given = build(), inputs()
    assert given.geometry is not None
    assert auxiliary.decoder is not None
    terms = auxiliary(given)
    maps = given.geometry.tokens.detach().flatten(0, 1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, GRID, mode="bilinear", antialias=True)
    target = F.layer_norm(maps.permute(0, 2, 3, 1).reshape(B, N, C), (C,))
    decoded = auxiliary.decoder(given.vlm.hidden[2][:, 2 : 2 + N])
    torch.testing.assert_close(terms["geo_loss"], (decoded - target).square().mean())
    terms["geo_loss"].backward()
    assert given.geometry.tokens.grad is None
    assert given.vlm.hidden[2].grad is not None
    assert all(p.grad is not None and p.grad.any() for p in auxiliary.decoder.parameters())


def test_views_without_depth_are_no_target() -> None:
    auxiliary = build(geo_target="depth")
    known: Any = inputs()
    zeros: Any = inputs()
    mask = torch.ones_like(known.batch.view_mask)
    mask[0, 0] = False
    known.batch.cameras.known.depth = mask
    known.batch.cameras.depth[0, 0] = 3.0  # means nothing
    zeros.batch.cameras.depth[0, 0] = 0.0  # no measurement
    assert torch.equal(auxiliary(known)["geo_loss"], auxiliary(zeros)["geo_loss"])


def test_depth_in_place_of_tokens_leaves_unmeasured_patches_out() -> None:
    auxiliary, given = build(geo_target="depth"), inputs()
    assert given.batch.cameras is not None
    depth = given.batch.cameras.depth
    assert depth is not None
    depth[0, 0, :2, :2] = float("nan")
    depth[0, 0, :2, 2] = 0.0
    terms = auxiliary(given)
    assert auxiliary.decoder is not None
    decoded = auxiliary.decoder(given.vlm.hidden[2][:, 2 : 2 + N])[..., 0]
    logs = depth.log().unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 1, 2, 4, 3, 5).reshape(B, N, 4)
    off = (decoded - logs.mean(dim=-1)).square()
    off[0, 1] = (decoded[0, 1] - depth[0, 0, :2, 3].log().mean()).square()
    kept = torch.ones(B, N, dtype=torch.bool)
    kept[0, 0] = False
    torch.testing.assert_close(terms["geo_loss"], off[kept].mean())
    given.batch.cameras = None
    with pytest.raises(UserError, match=r"cameras\.depth: missing"):
        auxiliary(given)


def test_missing_views_teach_nothing() -> None:
    auxiliary = build()
    given = inputs(missing=True)
    terms = auxiliary(given)
    assert all(term.isfinite() for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    grad = given.vlm.hidden[2].grad
    assert grad is not None
    assert not grad[0, 2 + N // 2 :].any()
    assert grad[0, 2 : 2 + N // 2].any()


def test_a_collapsed_latent_costs_and_a_spread_one_does_not() -> None:
    collapsed = torch.ones(64, 4)
    assert spread_loss(collapsed) == pytest.approx(1.0, abs=0.02)
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(4096, 4, generator=generator) * 1.2
    assert spread_loss(spread) < 0.02
    copied = spread[:, :1].expand(-1, 4)
    assert spread_loss(copied) > 1.0, "dims that say the same"
    with pytest.raises(UserError, match="one row"):
        spread_loss(torch.ones(1, 4))


def test_phases_meet_exactly_at_their_boundaries() -> None:
    auxiliary = build(sagr_phase_a_steps=3, sagr_phase_b_ramp_steps=4)
    shares = [auxiliary.weights(step)["dyn_loss"] / 0.5 for step in range(1, 10)]
    assert shares == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert auxiliary.weights(9) == {"dyn_loss": 0.5, "geo_loss": 0.25, "reg_loss": 0.125}
    at_once = build(sagr_phase_a_steps=1)
    assert [at_once.weights(step)["geo_loss"] for step in (1, 2)] == [0.0, 0.25]
    assert set(auxiliary(inputs())) == set(auxiliary.weights(1))


def test_idle_is_zero_with_a_zero_gradient_everywhere() -> None:
    auxiliary = build()
    idle = auxiliary(None)["idle"]
    assert idle == 0
    idle.backward()
    assert all(p.grad is not None and not p.grad.any() for p in auxiliary.parameters())


@pytest.mark.parametrize(
    ("options", "dims", "what"),
    [
        ({"loss_w_dyn": -1.0}, DIMS, "loss_w_dyn: must be >= 0, got -1.0"),
        ({"sagr_phase_a_steps": -1}, DIMS, "sagr_phase_a_steps: must be >= 0, got -1"),
        ({"layer": 9}, DIMS, "layer: 9 must be from 0 to 3"),
        ({"geo_target": "tokens"}, AuxiliaryDims(H, 3, 2, GRID, V, A, T), "geo_target: tokens needs"),
    ],
)
def test_mistakes(options: dict[str, object], dims: AuxiliaryDims, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        build(dims, **options)
