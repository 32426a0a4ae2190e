"""Mistakes around geometry, as a user meets them: one line that names the field, before any training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from vla_core.assemble import build_policy
from vla_core.batch import Batch
from vla_core.errors import UserError
from vla_core.framework import FrameworkConfig
from vla_core.interfaces import GeometryFeatures
from vla_core.policy import VLAPolicy
from vla_core.registry import override
from vla_core.testing import make_observation, make_sample, make_spec, register_fakes
from vla_core.types import Observation, Sample
from vla_geometry import MapAnythingEncoder, TinyGeometryEncoder
from vla_train.cli import main

SMALL = {"name": "tiny", "patch_size": 8, "encoder_dim": 16, "encoder_depth": 1, "dim": 24}
SMALL |= {"sharing_depth": 2, "head_dim": 8}
ENCODERS: dict[str, dict[str, Any]] = {"tiny": SMALL, "mapanything": {"name": "mapanything", "size": "tiny"}}
EACH = pytest.mark.parametrize("geometry", ENCODERS.values(), ids=ENCODERS)


@pytest.fixture(autouse=True)
def fakes() -> Iterator[None]:
    with register_fakes():
        yield


def policy_of(
    geometry: Mapping[str, Any], cameras: int = 2, side: int = 56, fusion: str = "aligned_concat"
) -> VLAPolicy:
    config = FrameworkConfig(
        horizon=4,
        vlm={"name": "fake"},
        head={"name": "fake"},
        geometry=dict(geometry),
        fusion={"name": fusion},
        transforms=[{"name": "normalize"}],
    )
    spec = make_spec(cameras, side, side)
    return build_policy(config, {spec.embodiment: spec})


def collate(policy: VLAPolicy, change: Callable[[Observation], Observation] = lambda o: o) -> Batch:
    ((name, spec),) = policy.specs.items()
    assert policy.collator is not None
    sample = policy.pipelines[name](make_sample(spec, 0))
    return policy.collator([replace(sample, observation=change(sample.observation))])


def one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@EACH
def test_images_that_are_not_whole_patches_have_no_rectangular_grid(geometry: dict[str, Any]) -> None:
    patch = geometry.get("patch_size", 14)
    nearest = round(60 / patch) * patch
    one_line(
        lambda: policy_of(geometry, side=60),
        rf"image_size: 60 x 60 is not a multiple of patch_size {patch}; resize .* {nearest} x {nearest}",
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 9, 24), r"geometry\.tokens: shape \[1, 2, 9, 24\] must be \[B, V, h, w, C\]"),
        ((1, 18, 24), r"geometry\.tokens: shape \[1, 18, 24\] must be"),
        ((1, 3, 3, 3, 24), r"geometry\.tokens: 3 views, visual\.grid has 2"),
        ((1, 2, 3, 3, 7), r"geometry\.tokens: 7 channels, .* geometry_dim 24"),
    ],
)
def test_features_of_an_encoder_from_outside(shape: tuple[int, ...], message: str) -> None:
    class Odd(TinyGeometryEncoder):
        def forward(self, images: Any, cameras: Any = None, needs: Any = frozenset()) -> GeometryFeatures:
            return GeometryFeatures(torch.zeros(shape))

    undo = override("vla.geometry", "odd", Odd)
    policy = policy_of({**SMALL, "name": "odd"})
    undo()
    one_line(lambda: policy.model(collate(policy)), message)
    (spec,) = policy.specs.values()
    one_line(lambda: policy.eval().act([make_observation(spec)], [0]), message)


@EACH
def test_a_wrong_number_of_views(geometry: dict[str, Any]) -> None:
    policy = policy_of(geometry).eval()
    (spec,) = policy.specs.values()
    seen = make_observation(spec)
    one = replace(seen, images={"camera_1": seen.images["camera_1"]})
    one_line(lambda: policy.act([one], [0]), "camera 'camera_0' is missing; got")
    three = replace(seen, images={**seen.images, "wrist": seen.images["camera_0"]})
    one_line(
        lambda: policy.act([three], [0]), r"camera 'wrist' is not in the spec \(known: camera_0, camera_1\)"
    )
    batch = collate(policy)
    batch.images, batch.view_mask = batch.images[:, :1], batch.view_mask[:, :1]
    one_line(lambda: policy.model(batch), r"images: shape \[1, 1, 3, 56, 56\] must be \[B, 2, 3, 56, 56\]")


@EACH
@pytest.mark.parametrize("shape", [(4, 4), (3,), (2, 3, 3)])
def test_intrinsics_of_another_shape(geometry: dict[str, Any], shape: tuple[int, ...]) -> None:
    policy = policy_of(geometry).eval()
    (spec,) = policy.specs.values()

    def with_intrinsics(observation: Observation) -> Observation:
        return replace(observation, intrinsics=dict.fromkeys(observation.images, np.ones(shape, np.float32)))

    where = r"intrinsics of camera 'camera_0'"
    one_line(
        lambda: policy.act([with_intrinsics(make_observation(spec))], [0]),
        rf"{where}: expected \(3, 3\), got",
    )
    one_line(lambda: collate(policy, with_intrinsics), rf"{where}: expected \(3, 3\), got")
    batch = collate(policy)
    assert batch.cameras is not None
    batch.cameras.intrinsics = torch.ones(1, 1, 3, 3)
    one_line(lambda: policy.model(batch), r"cameras\.intrinsics: shape \[1, 1, 3, 3\] must be \[1, 2, 3, 3\]")


def test_weights_of_another_size_or_number_of_views(tmp_path: Path) -> None:
    path = tmp_path / "geometry.safetensors"
    save_file(policy_of(SMALL).model.get_submodule("geometry").state_dict(), path)
    policy_of({**SMALL, "weights": str(path)})
    for other, cameras, key in (
        ({"dim": 16}, 2, r"info_sharing\.norm\.weight \[24\] instead of \[16\]"),
        ({"encoder_depth": 2}, 2, r"missing: encoder\.1\."),
        ({}, 3, r"info_sharing\.view_embedding \[2, 24\] instead of \[3, 24\]"),
    ):
        one_line(
            lambda other=other, cameras=cameras: policy_of({**SMALL, **other, "weights": str(path)}, cameras),
            rf"geometry\.weights: '.*' does not fit the configured encoder .*{key}",
        )
    other_size = MapAnythingEncoder.build(MapAnythingEncoder.Config(size="tiny_v1"), 2, (56, 56))
    save_file(other_size.state_dict(), path)
    one_line(
        lambda: policy_of({"name": "mapanything", "size": "tiny", "weights": str(path)}),
        r"geometry\.weights: '.*' does not fit the configured geometry\.size.*info_sharing\.norm\.weight",
    )


def test_a_checkpoint_whose_config_says_another_size(tmp_path: Path) -> None:
    saved = policy_of(SMALL).save(tmp_path / "steps_1", step=1)
    config = yaml.safe_load((saved / "config.yaml").read_text())
    section = config.get("framework", config)
    section["geometry"]["dim"] = 16
    (saved / "config.yaml").write_text(yaml.safe_dump(config))
    one_line(
        lambda: VLAPolicy.from_pretrained(saved), r"'(geometry|fusion)\.\S+' has shape .*24.*, the model has"
    )


@pytest.fixture
def quick(quickstart: dict[str, Any], tmp_path: Path) -> Callable[..., int]:
    """``vla-train`` on the shrunk quickstart with a geometric branch and overrides."""
    path = tmp_path / "run.yaml"

    def run(*words: str, geometry: Mapping[str, Any] = SMALL) -> int:
        quickstart["framework"] |= {"geometry": dict(geometry), "fusion": {"name": "aligned_concat"}}
        path.write_text(yaml.safe_dump(quickstart))
        return main(["--config", str(path), *words])

    return run


@pytest.mark.parametrize(
    ("encoder", "override_", "message"),
    [
        ("tiny", "geometry.patch_size=14", "image_size: 64 x 64 is not a multiple of patch_size 14"),
        ("mapanything", "geometry.bf16=false", "resize the images to 70 x 70"),
        ("mapanything", "geometry.size=tny", "geometry.size: no size 'tny' (did you mean 'tiny'?)"),
        ("tiny", "geometry.weights=nowhere.safetensors", "geometry.weights: no file 'nowhere.safetensors'"),
        ("tiny", "geometry.cache_mib=-1", "geometry.cache_mib': must be >= 0, got -1"),
        ("tiny", "fusion={name: position_3d}", "cameras.depth: missing; every view needs a depth image"),
        ("tiny", "fusion={name: position_3d, depth: geometry}", "cameras.intrinsics: missing"),
    ],
)
def test_vla_train_says_it_in_one_line(
    quick: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    encoder: str,
    override_: str,
    message: str,
    tmp_path: Path,
) -> None:
    assert quick(f"framework.{override_}", geometry=ENCODERS[encoder]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vla-train: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not list(tmp_path.glob("runs/**/checkpoints/*"))


def test_a_data_set_with_crooked_intrinsics_is_refused_before_the_policy_is_built(
    quick: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_data import LeRobotSource

    get = LeRobotSource.__getitem__

    def crooked(self: Any, index: int) -> Sample:
        sample = get(self, index)
        cameras = dict.fromkeys(sample.observation.images, np.eye(4, dtype=np.float32))
        return replace(sample, observation=replace(sample.observation, intrinsics=cameras))

    monkeypatch.setattr(LeRobotSource, "__getitem__", crooked)
    assert quick() == 2
    error = capsys.readouterr().err
    assert "datasets.train.0: intrinsics of camera '" in error
    assert "expected (3, 3), got (4, 4)" in error
