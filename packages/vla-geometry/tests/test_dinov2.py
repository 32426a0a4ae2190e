"""DINOv2 through transformers: its numbers, its published shapes, strict loading."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError

transformers = pytest.importorskip("transformers")

from vla_geometry.dinov2 import DINOv2Encoder, DINOv2GeometryConfig, architecture  # noqa: E402
from vla_geometry.images import MEAN, STD  # noqa: E402

TINY = DINOv2GeometryConfig(size="tiny")


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def saved(directory: Path, **changes: object) -> Path:
    """A published directory: the whole model, with the mask token."""
    torch.manual_seed(1)
    config = architecture("tiny")
    config.use_mask_token = True
    config.update(changes)
    model = transformers.Dinov2Model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("size", [(56, 56), (112, 84)])
def test_features_are_those_of_transformers(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path / "dino")
    encoder = DINOv2Encoder.build(DINOv2GeometryConfig("tiny", str(path)), 2, size)
    seen = images(3, 2, 3, *size)
    features = encoder(seen)
    h, w = size[0] // 14, size[1] // 14
    assert features.tokens.shape == (3, 2, h, w, 64)
    assert features.registers is not None
    reference = transformers.Dinov2Model.from_pretrained(path).eval()
    processor = transformers.BitImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    )
    pixels = processor([i.numpy() for i in seen.flatten(0, 1)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = reference(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(features.tokens.reshape(6, h * w, 64), hidden[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.registers.reshape(6, 64), hidden[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("small", 22_056_576), ("base", 86_580_480), ("large", 304_368_640), ("giant", 1_136_480_768)],
)
def test_published_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = DINOv2Encoder.build(DINOv2GeometryConfig(size), 2, (224, 224), weights=False)
    # The published models have the mask token besides.
    assert sum(p.numel() for p in encoder.parameters()) + encoder.dim == parameters
    assert encoder.grid == (16, 16)


def test_frozen_unless_asked_and_floats_are_bytes() -> None:
    seen = images(1, 2, 3, 56, 56)
    frozen, trained = (
        DINOv2Encoder.build(c, 2, (56, 56)) for c in (TINY, DINOv2GeometryConfig("tiny", trainable=True))
    )
    assert not frozen(seen).tokens.requires_grad
    trained(seen).tokens.square().sum().backward()
    assert [n for n, p in trained.named_parameters() if p.grad is None] == []
    torch.testing.assert_close(frozen(seen).tokens, frozen(seen / 255).tokens)
    assert frozen.bfloat16()(seen).tokens.dtype == torch.bfloat16


def test_views_do_not_know_of_each_other_and_keys_are_kept() -> None:
    torch.manual_seed(0)
    encoder = DINOv2Encoder.build(DINOv2GeometryConfig("tiny", cache_mib=1), 2, (56, 56))
    seen = images(1, 2, 3, 56, 56)
    other = seen.clone()
    other[:, 1] = 255 - other[:, 1]
    a, b = encoder(seen).tokens, encoder(other).tokens
    torch.testing.assert_close(a[:, 0], b[:, 0])
    assert not torch.allclose(a[:, 1], b[:, 1], atol=1e-3)
    cameras = Cameras(view_keys=[["front", None]])
    encoder(seen, cameras)
    torch.testing.assert_close(encoder(other, cameras).tokens[:, 0], a[:, 0])
    assert encoder.cache is not None
    assert encoder.cache.hits == 1


def test_bad_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"geometry.size: no size 'smal' \(did you mean 'small'"):
        DINOv2GeometryConfig("smal")
    with pytest.raises(ConfigError, match="multiple of patch_size 14"):
        DINOv2Encoder.build(TINY, 1, (64, 64))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        DINOv2Encoder.build(DINOv2GeometryConfig("tiny", str(tmp_path / "none")), 1, (56, 56))
    path = str(saved(tmp_path / "wide", num_hidden_layers=3))
    with pytest.raises(ConfigError, match=r"has num_hidden_layers 3, geometry\.size 'tiny' has 2"):
        DINOv2Encoder.build(DINOv2GeometryConfig("tiny", path), 1, (56, 56))
    file = saved(tmp_path / "cut") / "model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    del state["layernorm.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has 1 missing keys, first 'layernorm\.weight'"):
        DINOv2Encoder.build(DINOv2GeometryConfig("tiny", str(file.parent)), 1, (56, 56))
    with caplog.at_level(logging.WARNING):
        encoder = DINOv2Encoder.build(TINY, 1, (56, 56))
    assert "random features" in caplog.text
    with pytest.raises(UserError, match="needs: \\['depth'\\] asked for"):
        encoder(images(1, 1, 3, 56, 56), needs=frozenset({"depth"}))
    with pytest.raises(UserError, match="images: shape"):
        encoder(images(1, 2, 3, 56, 56))
