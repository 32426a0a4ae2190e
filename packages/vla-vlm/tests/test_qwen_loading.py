from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, VLMRequest
from vla_vlm import Qwen3TinyConfig, TinyConfig
from vla_vlm.common import tokenizer
from vla_vlm.common.pixels import PROCESSOR_FILE, ImageStats
from vla_vlm.common.rope import TextRope
from vla_vlm.qwen import loading
from vla_vlm.qwen.tokenizer import special_ids


@pytest.fixture
def checkpoint(tmp_path, kind, vlm):
    """A directory such as the hub's: config, weights with language head, tokenizer, processor."""
    vlm.save_assets(tmp_path)
    full = kind.reference(kind.model.family.config_class.from_pretrained(tmp_path))
    full.model.load_state_dict(vlm.model.state_dict())
    full.save_pretrained(tmp_path)
    return tmp_path


# Parameters of the published checkpoints, language head counted once where it is tied.
PUBLISHED = {
    "qwen2_5_vl": {"3b": 3_754_622_976, "7b": 8_292_166_656},
    "qwen3_vl": {"2b": 2_127_532_032, "4b": 4_437_815_808},
}


@pytest.mark.parametrize("which", [0, 1])
def test_published_names_and_shapes_on_the_meta_device(kind, which):
    size, count = list(PUBLISHED[kind.name].items())[which]
    with torch.device("meta"):
        ours = kind.build(2, (224, 224), base_vlm=size)
        theirs = kind.reference(loading.named_shapes(kind.model.family, size))
    expected = {name: value.shape for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected
    assert sum(p.numel() for p in theirs.parameters()) == count
    # Patches of 14 and 16 pixels.
    assert ours.dims.grid == {"qwen2_5_vl": (8, 8), "qwen3_vl": (7, 7)}[kind.name]


def test_a_directory_of_weights_loads_with_its_weights(checkpoint, kind, vlm, make_batch):
    loaded = kind.build(2, (48, 48), base_vlm=str(checkpoint)).eval()
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
    shapes_only = kind.build(2, (48, 48), base_vlm=str(checkpoint), init="random")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(shapes_only.state_dict()[name], vlm.state_dict()[name])


def test_both_namings_of_published_files_load(checkpoint, kind, vlm):
    """The hub's files say ``visual.`` and ``model.layers.``; newer ones nest them as the module does."""
    weights = load_file(checkpoint / "model.safetensors")
    if kind.name != "qwen2_5_vl":  # later models were published as the module is
        assert set(weights) == set(vlm.state_dict())
        return
    assert any(name.startswith("model.layers.") for name in weights)
    nested = {
        name.replace("model.", "model.language_model.").replace("visual.", "model.visual."): value
        for name, value in weights.items()
    }
    assert set(nested) == set(vlm.state_dict())
    save_file(nested, checkpoint / "model.safetensors", metadata={"format": "pt"})
    loaded = kind.build(2, (48, 48), base_vlm=str(checkpoint))
    for name, value in vlm.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_incomplete_weights_are_refused(checkpoint, kind, change):
    weights = load_file(checkpoint / "model.safetensors")
    (name,) = (name for name in weights if name.endswith(".layers.0.mlp.up_proj.weight"))
    if change == "missing":
        del weights[name]
    else:
        weights[name.replace(".0.", ".7.")] = weights[name].clone()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"1 {change} keys in its weights, first '.*up_proj"):
        kind.build(2, (48, 48), base_vlm=str(checkpoint))


def test_assets_round_trip(tmp_path, kind, make_batch):
    first = kind.build(2, (48, 80), vision="conv_vit").eval()
    first.save_assets(tmp_path)
    # The sizes come from the assets, not from the config.
    default = type(kind.tiny)()
    again = kind.build(2, (48, 80), tmp_path, vision="conv_vit", tiny=default).eval()
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


def test_image_statistics_come_with_the_weights(checkpoint, kind):
    path = checkpoint / PROCESSOR_FILE
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}))
    vlm = kind.build(1, (32, 32), base_vlm=str(checkpoint))
    assert vlm.vision_runner.normalize.mean.flatten().tolist() == [127.5] * 3
    path.unlink()
    vlm = kind.build(1, (32, 32), base_vlm=str(checkpoint))
    assert vlm.stats == ImageStats(kind.model.family.mean, kind.model.family.std)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


WINDOW = {"qwen2_5_vl": {"window_size": 48}}


def test_mistakes_are_one_line(tmp_path, checkpoint, kind, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def build(size=(64, 64), assets=None, **options):
        return kind.build(1, size, assets, **options)

    with pytest.raises(ConfigError, match="can't be loaded") as error:
        build(base_vlm=str(tmp_path / "nothing"))
    assert f"tiny, {', '.join(PUBLISHED[kind.name])}" in one_line(error)
    with pytest.raises(ConfigError, match="has no weights to load") as error:
        build(init="pretrained")
    one_line(error)
    with pytest.raises(ConfigError, match="vision: conv_vit has no pretrained weights") as error:
        build(base_vlm=str(checkpoint), vision="conv_vit")
    one_line(error)
    with pytest.raises(ConfigError, match=r"nothing/config.json: no such file") as error:
        build(assets=tmp_path / "nothing")
    one_line(error)
    with pytest.raises(ConfigError, match=r"100x64 must be a multiple of 16 .*resize to 96x64"):
        build((100, 64))
    with pytest.raises(ConfigError, match="power of two, got 6"):
        build((48, 48), vision="conv_vit", tiny=replace(kind.tiny, patch_size=6, **WINDOW.get(kind.name, {})))
    with pytest.raises(ConfigError, match="must be a multiple of 8"):
        replace(kind.tiny, hidden_size=100)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": []}))
    with pytest.raises(ConfigError, match=f"is a 'qwen2', not a '{kind.name}'") as error:
        build(base_vlm=str(tmp_path))
    one_line(error)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="window_size 40 must be a multiple of patch_size"):
        TinyConfig(window_size=40)
    for blocks in ((1, 0), (0, 0), (3,), (-1,)):
        with pytest.raises(ConfigError, match="must name vision blocks 0 to 2 in ascending order, got"):
            Qwen3TinyConfig(deepstack=blocks)
    with pytest.raises(ConfigError, match="deepstack has 3 entries, more than the 2 decoder layers"):
        Qwen3TinyConfig(deepstack=(0, 1, 2), n_layers=2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope_type", "linear", "rope_type 'linear' of the model's config isn't supported"),
        ("mrope_section", [4, 2, 1], r"mrope_section \[4, 2, 1\] .* add up to half of its head dim 16"),
        ("mrope_section", None, r"mrope_section \[\] .* must be three numbers"),
    ],
)
def test_a_rope_that_is_not_built_is_refused(kind, key, value, message):
    text = loading.tiny_shapes(kind.model.family, kind.tiny, 1536).text_config
    text.rope_parameters[key] = value
    with pytest.raises(ConfigError, match=message):
        TextRope(text, kind.model.family.rope_axes)


def test_a_tokenizer_without_image_tokens_is_refused():
    tokens = tokenizer.shipped()
    ids = special_ids(tokens, "tiny")
    assert len({ids.pad, ids.image, ids.prefix, ids.query, ids.vision_start, ids.vision_end}) == 6
    from tokenizers import Tokenizer, models

    with pytest.raises(ConfigError, match=r"tokenizer of 'x' lacks <\|endoftext\|>"):
        special_ids(Tokenizer(models.BPE()), "x")
