"""Augmentation of batches: cameras follow, draws repeat, and nothing happens where nothing should."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vla_core.batch import Batch, Cameras, Known, TokenFields
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_train.augment import Augmentation, AugmentationConfig
from vla_train.augment.colour import recolour
from vla_train.cli import main
from vla_train.dataloading.data import TransformedDataset
from vla_train.evaluation.validate import Validation

ALL = AugmentationConfig(0.7, 1.2, 15, 0.3, 0.3, 0.3, 0.1, 0.4, 0.1)
MOVES = AugmentationConfig(crop_scale=0.6, crop_ratio=1.2, rotation=20)
H, W = 48, 64


def batch(rows: int = 2, views: int = 3, dtype: torch.dtype = torch.uint8, **fields: Any) -> Batch:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(rows, views, 3, H, W, generator=rng)
    ids = torch.zeros(rows, 4, dtype=torch.long)
    return Batch(
        images=(images * 255).to(dtype) if dtype == torch.uint8 else images,
        view_mask=torch.ones(rows, views, dtype=torch.bool),
        tokens=TokenFields(ids, ids == 0, ids.to(torch.uint8)),
        embodiment=torch.zeros(rows, dtype=torch.long),
        state=torch.randn(rows, 5, generator=rng),
        state_mask=torch.ones(rows, 5, dtype=torch.bool),
        **fields,
    )


def test_off_is_the_same_batch_and_a_draw_of_nothing_is_bit_equal() -> None:
    given = batch()
    assert Augmentation(AugmentationConfig(), 0, 0)(given, 1) is given
    # The passes themselves, at zero strength: the first a crop of (all but) everything.
    for dtype in (torch.uint8, torch.float32):
        for barely in (AugmentationConfig(rotation=1e-12), AugmentationConfig(hue=1e-12)):
            still = batch(dtype=dtype)
            moved = Augmentation(barely, 0, 0)(still, 1)
            assert moved.images.dtype == dtype
            if dtype == torch.uint8:
                assert torch.equal(moved.images, still.images)
            else:
                torch.testing.assert_close(moved.images, still.images, atol=1e-4, rtol=0)
            assert torch.equal(moved.state, still.state)


def _blob(x: float, y: float) -> torch.Tensor:
    rows, cols = torch.arange(H)[:, None] + 0.5, torch.arange(W) + 0.5
    return torch.exp(-((cols - x) ** 2 + (rows - y) ** 2) / 8)


@pytest.mark.parametrize("known", [True, False])
def test_a_point_is_seen_where_the_new_camera_projects_it(known: bool) -> None:
    """A blob at a point's projection, unequal focal lengths, a pose: all follow the picture."""
    rows, point = 6, torch.tensor([0.05, -0.04, 1.5])  # in the old camera
    k = torch.tensor([[70.0, 0, 35], [0, 55, 22], [0, 0, 1]])
    if not known:  # then square pixels and the picture's centre are what is assumed
        k = torch.tensor([[60.0, 0, W / 2], [0, 60, H / 2], [0, 0, 1]])
    pose = torch.eye(4)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.3, 0.2], [0.3, 0, -0.5], [-0.2, 0.5, 0]]))
    pose[:3, :3], pose[:3, 3] = turn, torch.tensor([0.2, -0.1, 0.4])
    world = pose[:3, :3] @ point + pose[:3, 3]
    pixel = k @ point
    blob = _blob(float(pixel[0] / pixel[2]), float(pixel[1] / pixel[2]))
    cameras = Cameras(
        intrinsics=k.expand(rows, 1, 3, 3) if known else None,
        extrinsics=pose.expand(rows, 1, 4, 4),
        depth=torch.where(blob > 0.5, point[2], 3.0).expand(rows, 1, H, W),
    )
    given = batch(rows, 1, cameras=cameras)
    given.images = (blob * 255).round().to(torch.uint8).expand(rows, 1, 3, H, W)
    new = Augmentation(MOVES, 3, 0)(given, 5)
    assert new.cameras is not None
    assert new.cameras.extrinsics is not None
    assert new.cameras.depth is not None
    found = 0
    for r in range(rows):
        image = new.images[r, 0, 0].float()
        if image[[0, -1]].max() > 20 or image[:, [0, -1]].max() > 20 or image.max() < 200:
            continue  # the crop has cut it off
        new_pose = new.cameras.extrinsics[r, 0]
        torch.testing.assert_close(new_pose[:3, :3] @ new_pose[:3, :3].T, torch.eye(3), atol=1e-5, rtol=0)
        inside = new_pose[:3, :3].T @ (world - new_pose[:3, 3])
        if new.cameras.intrinsics is None:
            found += 1
            continue
        seen = new.cameras.intrinsics[r, 0] @ inside
        x, y = float(seen[0] / seen[2]), float(seen[1] / seen[2])
        cols, lines = torch.arange(W) + 0.5, torch.arange(H) + 0.5
        assert x == pytest.approx(float((image.sum(0) * cols).sum() / image.sum()), abs=0.15)
        assert y == pytest.approx(float((image.sum(1) * lines).sum() / image.sum()), abs=0.15)
        assert float(inside[2]) == pytest.approx(float(point[2]), abs=1e-5)
        assert float(new.cameras.depth[r, 0, int(y), int(x)]) == pytest.approx(float(point[2]))
        found += 1
    assert found >= 3
    # Every row has moved, each by itself.
    assert len({float(image.sum()) for image in new.images.float()}) == rows


def test_views_without_a_camera_stay_without_and_depth_beyond_the_border_is_none() -> None:
    k = torch.eye(3).expand(2, 3, 3, 3).clone()
    k[:, 1] = 0
    known = Known(intrinsics=torch.tensor([[True, False, True]] * 2))
    given = batch(cameras=Cameras(intrinsics=k, depth=torch.ones(2, 3, H, W), known=known))
    turned = Augmentation(AugmentationConfig(rotation=45), 0, 0)(given, 1)
    assert turned.cameras is not None
    assert turned.cameras.intrinsics is not None
    assert torch.equal(turned.cameras.intrinsics[:, 1], torch.zeros(2, 3, 3))
    assert turned.images.float().isfinite().all()
    assert turned.cameras.depth is not None
    assert set(turned.cameras.depth.unique().tolist()) == {0.0, 1.0}


def test_colours_follow_their_definitions() -> None:
    image = torch.rand(1, 1, 3, 8, 8)
    nothing = torch.ones(1, 1, 3)
    torch.testing.assert_close(recolour(image, nothing, torch.zeros(1, 1)), image)
    brighter = recolour(image, torch.tensor([[[1.2, 1, 1]]]), torch.zeros(1, 1))
    torch.testing.assert_close(brighter, 1.2 * image)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (image * luma).sum(2, keepdim=True)
    flat = recolour(image, torch.tensor([[[1, 0.0, 1]]]), torch.zeros(1, 1))
    torch.testing.assert_close(flat, grey.mean().expand_as(flat))
    drained = recolour(image, torch.tensor([[[1, 1, 0.0]]]), torch.zeros(1, 1))
    torch.testing.assert_close(drained, grey.expand_as(drained))
    turned = recolour(image, nothing, torch.full((1, 1), math.pi))
    torch.testing.assert_close((turned * luma).sum(2, keepdim=True), grey, atol=1e-3, rtol=0)
    assert (turned - image).abs().max() > 0.1
    torch.testing.assert_close(
        recolour(turned, nothing, torch.full((1, 1), math.pi)), image, atol=1e-3, rtol=0
    )


def test_draws_repeat_by_seed_rank_step_and_micro_batch() -> None:
    given = batch()
    first = Augmentation(ALL, 0, 0)(given, 4, 1)
    again = Augmentation(ALL, 0, 0)(given, 4, 1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.state, again.state)
    for seed, rank, step, micro in ((1, 0, 4, 1), (0, 1, 4, 1), (0, 0, 5, 1), (0, 0, 4, 0)):
        other = Augmentation(ALL, seed, rank)(given, step, micro)
        assert not torch.equal(first.images, other.images)
        assert not torch.equal(first.state, other.state)
    # What else is on does not change a draw, and torch's own stream is left alone.
    torch.manual_seed(0)
    alone = Augmentation(replace(AugmentationConfig(), rotation=15, crop_scale=0.7), 0, 0)(given, 4, 1)
    both = Augmentation(replace(AugmentationConfig(state_noise=1.0), rotation=15, crop_scale=0.7), 0, 0)(
        given, 4, 1
    )
    assert torch.equal(alone.images, both.images)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_frames_of_a_history_and_the_future_share_a_draw() -> None:
    given = batch(2, 4)
    given.images[:] = given.images[:, :1]
    given.future = batch(2, 4)
    given.future.images = given.images
    new = Augmentation(replace(ALL, state_dropout=0), 0, 0, frames=2)(given, 1)
    assert torch.equal(new.images[:, 0], new.images[:, 1])
    assert torch.equal(new.images[:, 2], new.images[:, 3])
    assert not torch.equal(new.images[:, 0], new.images[:, 2])
    assert new.future is not None
    assert torch.equal(new.future.images, new.images)
    assert torch.equal(new.future.state, given.future.state)


def test_state_dropout_hides_rows_and_noise_leaves_padding() -> None:
    given = batch(400)
    assert given.state_mask is not None
    assert given.state is not None
    given.state_mask[:, 4] = False
    given.state[:, 4] = 0
    new = Augmentation(AugmentationConfig(state_dropout=0.25, state_noise=0.1), 0, 0)(given, 1)
    assert new.state is not None
    assert new.state_mask is not None
    kept = new.state_mask[:, 0]
    assert 0.65 < kept.float().mean() < 0.85
    assert torch.equal(new.state_mask[:, :4], kept[:, None].expand(-1, 4))
    assert not new.state_mask[:, 4].any()
    assert not new.state[~kept].any()
    assert not new.state[:, 4].any()
    noise = (new.state - given.state)[kept, :4]
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    assert abs(float(noise.mean())) < 0.01
    assert torch.equal(new.images, given.images)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"crop_scale": 0.0}, "datasets.augmentation.crop_scale'?: must be in"),
        ({"rotation": 90}, "datasets.augmentation.rotation'?: must be in"),
        ({"state_dropout": 1.5}, "datasets.augmentation.state_dropout'?: must be in"),
        ({"crop": 0.9}, "crop"),
    ],
)
def test_wrong_strengths_are_one_line(node: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config(AugmentationConfig, node, "datasets.augmentation")


def test_a_policy_without_state_refuses_state_noise() -> None:
    with pytest.raises(ConfigError, match=r"augmentation.state_noise: the policy gets no state vector"):
        Augmentation(AugmentationConfig(state_noise=0.1), 0, 0).check(has_state=False)


STRENGTHS = ("crop_scale=0.7", "rotation=5", "brightness=0.2", "state_dropout=0.5", "state_noise=0.1")
AUGMENTED = [f"datasets.augmentation.{strength}" for strength in STRENGTHS]


def _lines(config: Path, run: str) -> dict[int, dict[str, float]]:
    file = config.parent / "runs" / run / "metrics.jsonl"
    out: dict[int, dict[str, float]] = {}
    for line in file.read_text().splitlines():
        node = json.loads(line)
        out.setdefault(node["step"], {}).update(node)
    return out


@pytest.mark.slow
def test_a_run_resumes_in_its_draws_and_validates_on_what_was_recorded(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    measure = Validation._measure

    def record(self: Validation, part: Any, engine: Any, say: Any) -> Any:
        collate = self.collate

        def spy(samples: Any) -> Any:
            read = collate(samples)
            seen.append(read.images.numpy().copy())
            return read

        monkeypatch.setattr(self, "collate", spy)
        result = measure(self, part, engine, say)
        monkeypatch.setattr(self, "collate", collate)
        assert isinstance(part.dataset, TransformedDataset)
        assert part.dataset.seed is None
        return result

    monkeypatch.setattr(Validation, "_measure", record)
    base = ["--config", str(toy_config), "trainer.log_every=1", "trainer.val_every=2", "trainer.save_every=2"]
    base += ["trainer.schedule=constant", "trainer.max_steps=4"]
    assert main([*base, "run_id=plain"]) == 0
    plain, n = list(seen), len(seen)
    assert main([*base, *AUGMENTED, "run_id=whole"]) == 0
    whole = seen[n:]
    assert n
    assert len(whole) == n
    assert all(np.array_equal(a, b) for a, b in zip(plain, whole, strict=True))
    assert main([*base, *AUGMENTED, "run_id=parts", "trainer.max_steps=2"]) == 0
    assert main([*base, *AUGMENTED, "run_id=parts", "trainer.resume=true"]) == 0
    one, two, without = (_lines(toy_config, run) for run in ("whole", "parts", "plain"))
    assert [one[s]["loss"] for s in range(1, 5)] == [two[s]["loss"] for s in range(1, 5)]
    assert one[1]["loss"] != without[1]["loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_gpu_changes_what_the_cpu_changes(dtype: torch.dtype) -> None:
    """The same draws, and pixels that differ by rounding alone."""
    given = batch(8, 2, dtype)
    augmentation = Augmentation(ALL, seed=3, rank=1)
    here, there = augmentation(given, 5, 1), augmentation(given.to("cuda"), 5, 1)
    moved = there.to("cpu")
    unit = 255.0 if dtype == torch.uint8 else 1.0
    difference = (here.images.double() - moved.images.double()).abs() / unit
    assert float(difference.max()) < 0.01  # between two grey levels a value may fall either way
    assert float(difference.mean()) < 1e-4
    assert torch.equal(here.state_mask, moved.state_mask)
    torch.testing.assert_close(here.state, moved.state)
    again = augmentation(given.to("cuda"), 5, 1)
    assert torch.equal(again.images, there.images)
