from __future__ import annotations

import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionModel, SiglipImageProcessorPil, SiglipVisionModel
from vla_core.errors import ConfigError
from vla_vlm.common.towers import TOWERS, build_tower

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.1,
    "initializer_factor": 2.0,
}
MODELS = {"siglip": SiglipVisionModel, "clip": CLIPVisionModel}
PROCESSORS = {"siglip": SiglipImageProcessorPil, "clip": CLIPImageProcessorPil}
both = pytest.mark.parametrize("name", list(TOWERS))


def reference(name, **sizes):
    return MODELS[name](TOWERS[name].config_class(**{**TINY, **sizes})).eval()


def processed(name, images):
    """Pixels as the processor of the published model makes them, at the tower's size."""
    size = {"height": 56, "width": 56}
    processor = PROCESSORS[name](size=size, crop_size=size)
    return processor(list(images), return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]


@both
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_features_equal_transformers(name, attn):
    torch.manual_seed(0)
    theirs = reference(name)
    kind = TOWERS[name]
    ours = build_tower(name, kind.config_class(**TINY), torch.float32, attn).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    runner = kind.runner(ours.config, (56, 56), kind.stats)
    assert runner.grid == (4, 4)
    with torch.no_grad():
        features = runner(ours, images)
        out = theirs(processed(name, images), output_hidden_states=True)
    expected = out.last_hidden_state if name == "siglip" else out.hidden_states[-2][:, 1:]
    assert features.std() > 0.1
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@both
def test_only_what_is_read_is_built_and_learns(name):
    torch.manual_seed(0)
    kind = TOWERS[name]
    tower = build_tower(name, kind.config_class(**TINY), torch.float32, "sdpa")
    left_out = {"siglip": "head.", "clip": ("encoder.layers.2.", "post_layernorm.")}[name]
    names = {key for key in reference(name).state_dict() if not key.startswith(left_out)}
    assert {key for key, _ in tower.named_parameters()} == set(tower.state_dict()) == names
    images = torch.randint(0, 256, (1, 3, 56, 56), dtype=torch.uint8)
    kind.runner(tower.config, (56, 56), kind.stats)(tower, images).square().sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


@both
def test_tables_survive_the_meta_device(name):
    """Positions are read from the parameter: ``to_empty`` can do no harm."""
    torch.manual_seed(0)
    kind = TOWERS[name]
    images = torch.randint(0, 256, (1, 3, 56, 56), dtype=torch.uint8)
    first = build_tower(name, kind.config_class(**TINY), torch.float32, "sdpa").eval()
    with torch.device("meta"):
        second = build_tower(name, kind.config_class(**TINY), torch.float32, "sdpa").eval()
        runner = kind.runner(second.config, (56, 56), kind.stats)
    second, runner = second.to_empty(device="cpu"), runner.to("cpu")
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(
            runner(second, images), kind.runner(first.config, (56, 56), kind.stats)(first, images)
        )


def test_an_image_of_another_size_names_the_fix():
    kind = TOWERS["siglip"]
    with pytest.raises(ConfigError, match=r"image size 64x56 isn't the vision tower's 56x56;.*height: 56"):
        kind.runner(kind.config_class(**TINY), (64, 56), kind.stats)
