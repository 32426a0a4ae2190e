from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, VLMRequest
from vla_vlm import Qwen25VL, Qwen25VLConfig, TinyConfig
from vla_vlm.qwen2_5_vl import loading, tokenizer


@pytest.fixture
def checkpoint(tmp_path, vlm):
    """A directory such as the hub's: config, weights with language head, tokenizer, processor."""
    vlm.save_assets(tmp_path)
    full = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(tmp_path))
    full.model.load_state_dict(vlm.model.state_dict())
    full.save_pretrained(tmp_path)
    return tmp_path


# Parameters of the published checkpoints, language head counted once where it is tied.
PUBLISHED = {"3b": 3_754_622_976, "7b": 8_292_166_656}


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_published_names_and_shapes_on_the_meta_device(size):
    with torch.device("meta"):
        ours = Qwen25VL.build(Qwen25VLConfig(base_vlm=size), 2, (224, 224))
        theirs = Qwen2_5_VLForConditionalGeneration(loading.named_config(size))
    expected = {name: value.shape for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected
    assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED[size]
    assert ours.dims.grid == (8, 8)


def test_a_directory_of_weights_loads_with_its_weights(checkpoint, vlm, make_batch):
    loaded = Qwen25VL.build(Qwen25VLConfig(base_vlm=str(checkpoint)), 2, (48, 48)).eval()
    for name, value in vlm.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    batch = make_batch(vlm)
    for model in (vlm, loaded):
        out = model(
            model.embed_text(batch), model.embed_images(batch.images, batch.view_mask), None, VLMRequest((3,))
        )
        first = out.hidden[3] if model is vlm else first  # noqa: F821
    assert torch.equal(out.hidden[3], first)
    assert torch.equal(make_batch(loaded).tokens.input_ids, batch.tokens.input_ids)
    shapes_only = Qwen25VL.build(Qwen25VLConfig(base_vlm=str(checkpoint), init="random"), 2, (48, 48))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(shapes_only.state_dict()[name], vlm.state_dict()[name])


def test_both_namings_of_published_files_load(checkpoint, vlm):
    """The hub's files say ``visual.`` and ``model.layers.``; newer ones nest them as the module does."""
    weights = load_file(checkpoint / "model.safetensors")
    assert any(name.startswith("model.layers.") for name in weights)
    nested = {
        name.replace("model.", "model.language_model.").replace("visual.", "model.visual."): value
        for name, value in weights.items()
    }
    assert set(nested) == set(vlm.state_dict())
    save_file(nested, checkpoint / "model.safetensors", metadata={"format": "pt"})
    loaded = Qwen25VL.build(Qwen25VLConfig(base_vlm=str(checkpoint)), 2, (48, 48))
    for name, value in vlm.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_incomplete_weights_are_refused(checkpoint, change):
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    else:
        weights["model.layers.7.mlp.up_proj.weight"] = weights[name].clone()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"1 {change} keys in its weights, first '.*up_proj"):
        Qwen25VL.build(Qwen25VLConfig(base_vlm=str(checkpoint)), 2, (48, 48))


def test_assets_round_trip(tmp_path, small, make_batch):
    config = Qwen25VLConfig(tiny=small, vision="conv_vit")
    first = Qwen25VL.build(config, 2, (48, 80)).eval()
    first.save_assets(tmp_path)
    # The sizes come from the assets, not from the config.
    again = Qwen25VL.build(Qwen25VLConfig(vision="conv_vit"), 2, (48, 80), assets=tmp_path).eval()
    again.load_state_dict(first.state_dict())
    batch = make_batch(first, PromptSpec())
    outs = [
        m(m.embed_text(batch), m.embed_images(batch.images, batch.view_mask), None, VLMRequest((3,))).hidden[
            3
        ]
        for m in (first, again)
    ]
    assert torch.equal(*outs)
    assert torch.equal(make_batch(again).tokens.input_ids, batch.tokens.input_ids)


def test_image_statistics_come_with_the_weights(checkpoint):
    path = checkpoint / loading.PROCESSOR_FILE
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}))
    vlm = Qwen25VL.build(Qwen25VLConfig(base_vlm=str(checkpoint)), 1, (32, 32))
    assert vlm.vision_runner.normalize.mean.flatten().tolist() == [127.5] * 3
    path.unlink()
    vlm = Qwen25VL.build(Qwen25VLConfig(base_vlm=str(checkpoint)), 1, (32, 32))
    assert vlm.stats == loading.ImageStats()


def build(**options):
    return Qwen25VL.build(Qwen25VLConfig(**options), 1, (64, 64))


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_mistakes_are_one_line(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="can't be loaded") as error:
        build(base_vlm=str(tmp_path / "nothing"))
    assert "tiny, 3b, 7b" in one_line(error)
    with pytest.raises(ConfigError, match="has no weights to load") as error:
        build(init="pretrained")
    one_line(error)
    with pytest.raises(ConfigError, match="vision: conv_vit has no pretrained weights") as error:
        build(base_vlm=str(checkpoint), vision="conv_vit")
    one_line(error)
    with pytest.raises(ConfigError, match=r"nothing/config.json: no such file") as error:
        Qwen25VL.build(Qwen25VLConfig(), 1, (64, 64), assets=tmp_path / "nothing")
    one_line(error)
    with pytest.raises(ConfigError, match=r"100x64 must be a multiple of 16 .*resize to 96x64"):
        Qwen25VL.build(Qwen25VLConfig(), 1, (100, 64))
    with pytest.raises(ConfigError, match="power of two, got 6"):
        Qwen25VL.build(
            Qwen25VLConfig(vision="conv_vit", tiny=TinyConfig(patch_size=6, window_size=48)), 1, (48, 48)
        )
    with pytest.raises(ConfigError, match="must be a multiple of 8"):
        TinyConfig(hidden_size=100)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": []}))
    with pytest.raises(ConfigError, match="is a 'qwen2', not a 'qwen2_5_vl'") as error:
        build(base_vlm=str(tmp_path))
    one_line(error)


def test_a_tokenizer_without_image_tokens_is_refused():
    tokens = tokenizer.shipped()
    ids = tokenizer.special_ids(tokens, "tiny")
    assert len({ids.pad, ids.image, ids.prefix, ids.query, ids.vision_start, ids.vision_end}) == 6
    from tokenizers import Tokenizer, models

    with pytest.raises(ConfigError, match=r"tokenizer of 'x' lacks <\|endoftext\|>"):
        tokenizer.special_ids(Tokenizer(models.BPE()), "x")
