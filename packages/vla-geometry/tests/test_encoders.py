"""What both encoders promise: frozen they record nothing; no waiting; dense heads on demand."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vla_core.batch import Cameras
from vla_geometry import MapAnythingConfig, MapAnythingEncoder, TinyGeometryConfig, TinyGeometryEncoder

SIZE = (28, 42)
TINY = {"encoder_dim": 16, "encoder_depth": 1, "dim": 24, "sharing_depth": 2, "head_dim": 8}
KINDS = {
    "tiny": lambda **more: TinyGeometryEncoder.build(TinyGeometryConfig(**TINY, **more), 2, SIZE),
    "giant": lambda **more: MapAnythingEncoder.build(MapAnythingConfig(size="tiny", **more), 2, SIZE),
    "large": lambda **more: MapAnythingEncoder.build(MapAnythingConfig(size="tiny_v1", **more), 2, SIZE),
}
EACH = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS.keys())
DENSE = frozenset({"depth", "points"})


def pictures():
    return torch.randint(0, 256, (2, 2, 3, *SIZE), dtype=torch.uint8)


def calibrated(missing=False):
    matrix = torch.tensor([[30.0, 0.0, 21.0], [0.0, 30.0, 14.0], [0.0, 0.0, 1.0]])
    view_mask = torch.tensor([[True, True], [True, False]]) if missing else None
    return Cameras(matrix.expand(2, 2, 3, 3).clone(), view_mask=view_mask)


def parts(features):
    return [
        x for x in (features.tokens, features.registers, features.depth, features.points) if x is not None
    ]


class Watch(TorchDispatchMode):
    """Notes the dtypes of matrix products, and refuses operations that make the host wait for the device."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.waiting), name
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), "boolean index"
        if name in ("addmm", "mm", "convolution"):
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@EACH
def test_a_frozen_encoder_keeps_nothing_for_a_backward_pass(build):
    images, cameras, kept = pictures(), calibrated(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        frozen = build()(images, cameras, DENSE)
        assert not kept
        trained = build(trainable=True)(images, cameras, DENSE)
        assert len(kept) > 50
    assert not any(x.requires_grad for x in parts(frozen))
    assert all(x.requires_grad for x in parts(trained))


@EACH
@pytest.mark.parametrize("missing", [False, True])
def test_never_waits_for_the_device(build, missing):
    encoder = build()
    with Watch():
        encoder(pictures(), calibrated(missing), DENSE)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_in_the_policy_s_precision_on_a_cpu(build, dtype):
    encoder, images = build(), pictures()
    exact = encoder(images, calibrated(), DENSE)
    encoder.to(dtype)
    with Watch() as watch:
        features = encoder(images, calibrated(), DENSE)
    assert watch.dtypes == {dtype}
    assert features.tokens.dtype == features.registers.dtype == dtype
    assert features.depth.dtype == features.points.dtype == torch.float32  # metres are never rounded to bf16
    for ours, theirs in zip(parts(features), parts(exact), strict=True):
        limit = 0.0 if dtype == torch.float32 else 0.05
        assert (ours.float() - theirs).norm() <= limit * theirs.norm()


@EACH
def test_without_needs_the_dense_heads_cost_nothing(build):
    encoder, ran = build(), []
    dense = [
        m
        for n, m in encoder.named_modules()
        if n.split(".")[0] in ("dense", "dense_head", "scale_head", "pose_head")
    ]
    assert len(dense) >= 3
    for module in dense:
        module.register_forward_hook(lambda *_: ran.append(1))
    encoder(pictures(), calibrated())
    assert not ran
    encoder(pictures(), calibrated(), DENSE)
    assert ran
