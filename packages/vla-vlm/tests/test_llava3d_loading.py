"""Checkpoints as they are published, made small: LLaVA-3D's directory and the tower's, beside each other."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, VLMRequest
from vla_vlm import Llava3D, Llava3DConfig, Llava3DTinyConfig
from vla_vlm.common import tokenizer
from vla_vlm.common.towers import TOWERS
from vla_vlm.llava3d.tokenizer import RESERVED

SIDE, PATCH, ROWS = 28, 14, 1536
TOWER = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": SIDE, "patch_size": PATCH}
TEXT = {**TOWER, "vocab_size": 50}
FULL = {
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)),
}
DECODER = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 5000.0,
    "max_position_embeddings": 512,
}  # fmt: skip


def write_tower(path, name):
    """A whole SigLIP or CLIP under its published names, with the buffers that old files have."""
    torch.manual_seed(1)
    model = FULL[name]()
    path.mkdir()
    model.config.save_pretrained(path)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    weights["vision_model.embeddings.position_ids"] = torch.arange(4)[None]
    torch.save(weights, path / "pytorch_model.bin")
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]})
    )
    return weights


def write_llava(path, kind, tower="openai/clip-vit-tiny-patch14-28", **changes):
    """LLaVA-3D's directory: ``config.json``, two shards, a tokenizer."""
    torch.manual_seed(2)
    config = Llava3DConfig(
        decoder=kind,
        tiny=Llava3DTinyConfig(
            hidden_size=32, n_layers=2, n_heads=4, intermediate_size=48, vision_hidden=24, vision_heads=2
        ),
    )
    made = Llava3D.build(config, 1, (SIDE, SIDE))
    path.mkdir()
    published = {
        "model_type": f"llava_{kind}",
        "architectures": ["Llava"],
        **DECODER,
        "mm_vision_tower": tower,
        "mm_hidden_size": 24,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_video_tower": "SpatialAwareModule",
        "pad_token_id": 0,
        **changes,
    }
    (path / "config.json").write_text(json.dumps(published))
    weights = {f"model.{k}": v.clone() for k, v in made.language_model.state_dict().items()}
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:ROWS].clone()
    video = "model.video_tower"
    weights |= {
        "lm_head.weight": torch.randn(ROWS, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        f"{video}.video_tower.positional_embedding.position_embedding_head.0.weight": torch.ones(24, 3),
        f"{video}.prompt_encoder.pos_emb3d.position_embedding_head.0.weight": torch.ones(32, 3),
        "model.vision_tower.vision_tower.vision_model.post_layernorm.weight": torch.ones(24),
    }
    for layer, width in ((0, 24), (2, 32)):
        weights[f"model.mm_projector.{layer}.weight"] = torch.randn(32, width)
        weights[f"model.mm_projector.{layer}.bias"] = torch.randn(32)
    write_shards(path, weights)
    tokenizer.shipped().save(str(path / "tokenizer.json"))
    return weights


def write_shards(path, weights):
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: weights[key] for key in keys}, path / file)
    index = {key: file for file, keys in shards.items() for key in keys}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.fixture
def folders(tmp_path):
    """Function ``(decoder, tower)`` -> config options and the weights of both directories."""

    def make(kind="llama", tower="clip", **changes):
        vision = write_tower(tmp_path / tower, tower)
        language = write_llava(tmp_path / "llava", kind, **changes)
        options = {
            "base_vlm": str(tmp_path / "llava"),
            "vision_weights": str(tmp_path / tower),
            "vision_tower": tower,
        }
        return options, language, vision

    return make


class Answers:
    """Two words to speak."""

    tokens = ("<a0>", "<a1>")
    n_ids = max_length = 2


def ours(caplog):
    return [record for record in caplog.records if record.name.startswith("vla_vlm")]


def build(options, size=(SIDE, SIDE), assets=None):
    return Llava3D.build(Llava3DConfig(**options), 2, size, assets)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_language_model_tower_and_matching_projector_load(folders, kind, caplog):
    options, language, vision = folders(kind)
    with caplog.at_level(logging.WARNING):
        vlm = build(options)
    assert not ours(caplog)
    assert vlm.new_parts == {}
    assert vlm.shapes.decoder == kind
    assert vlm.shapes.projector == "mlp2x_gelu"
    loaded = dict(vlm.model.language_model.state_dict())
    embedding = loaded.pop("embed_tokens.weight")
    assert torch.equal(embedding[:ROWS], language["model.embed_tokens.weight"])
    assert embedding.shape == (ROWS + len(RESERVED), 32)
    mean = language["model.embed_tokens.weight"].mean(0)
    torch.testing.assert_close(embedding[ROWS:], mean.expand(len(RESERVED), -1))
    for name, value in loaded.items():
        assert torch.equal(value, language[f"model.{name}"]), name
    for name, value in vlm.model.mm_projector.state_dict().items():
        assert torch.equal(value, language[f"model.mm_projector.{name}"]), name
    for name, value in vlm.model.vision_tower.state_dict().items():
        assert torch.equal(value, vision[f"vision_model.{name}"]), name
    assert vlm.language_model.config.rope_parameters["rope_theta"] == 5000.0
    assert vlm.stats.mean == [0.4, 0.5, 0.6]
    assert vlm.tokenizer.token_to_id("<image>") == vlm.special.image == ROWS


def test_a_projector_of_another_tower_is_reported_as_new(folders, caplog):
    options, language, vision = folders(tower="siglip")
    with caplog.at_level(logging.WARNING):
        vlm = build(options)
    (record,) = ours(caplog)
    message = record.getMessage()
    assert "projector (model.mm_projector, linear) is new and has to be trained" in message
    assert "trained on 'openai/clip-vit-tiny-patch14-28' (24 wide, layer -2), not on this siglip" in message
    assert vlm.new_parts.keys() == {"model.mm_projector"}
    assert vlm.model.mm_projector.weight.shape == (32, 24)
    for name, value in vlm.model.vision_tower.state_dict().items():
        assert torch.equal(value, vision[f"vision_model.{name}"]), name
    assert torch.equal(vlm.language_model.norm.weight, language["model.norm.weight"])


@pytest.mark.parametrize(
    ("published", "options", "reason"),
    [
        (
            {"mm_vision_tower": "openai/clip-vit-tiny-patch14"},
            {},
            "trained on 'openai/clip-vit-tiny-patch14'",
        ),
        ({"mm_vision_select_layer": -1}, {}, "24 wide, layer -1"),
        ({"mm_hidden_size": 48}, {}, "48 wide"),
        ({"mm_vision_tower": None}, {}, "has none"),
        ({"mm_projector_type": "identity"}, {}, "of type 'identity', which isn't built"),
        ({}, {"projector": "linear"}, "is 'mlp2x_gelu', the config asks for 'linear'"),
    ],
)
def test_why_a_projector_is_new(folders, published, options, reason):
    given, _, _ = folders(**published)
    assert reason in build({**given, **options}).new_parts["model.mm_projector"]


def test_shapes_alone(folders):
    options, language, _ = folders()
    vlm = build({**options, "init": "random"})
    assert vlm.new_parts == {}
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(vlm.language_model.state_dict()[name], language[f"model.{name}"])
    assert vlm.language_model.state_dict()[name].shape == language[f"model.{name}"].shape


def test_a_plain_language_model_serves_too(folders, tmp_path):
    options, language, _ = folders(model_type="llama", mm_vision_tower=None)
    write_shards(
        tmp_path / "llava", {k: v for k, v in language.items() if ".mm_" not in k and "_tower" not in k}
    )
    assert "has none" in build(options).new_parts["model.mm_projector"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"base_vlm .*1 missing: model\.norm\.weight\)"),
        (
            lambda w: w.update({"model.layers.7.x": torch.ones(1)}),
            r"base_vlm .*1 unexpected: model\.layers\.7\.x\)",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(31)}),
            r"base_vlm .*1 of another shape: model\.norm\.weight \[31\] instead of \[32\]\)",
        ),
        (lambda w: w.pop("model.mm_projector.2.bias"), r"1 missing: model\.mm_projector\.2\.bias\)"),
    ],
)
def test_weights_that_do_not_fit_are_listed(folders, tmp_path, change, message):
    options, language, _ = folders()
    change(language)
    write_shards(tmp_path / "llava", language)
    with pytest.raises(ConfigError, match=message) as error:
        build(options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tower", list(TOWERS))
def test_a_tower_that_does_not_fit_is_listed(folders, tmp_path, tower):
    options, _, vision = folders(tower=tower)
    del vision["vision_model.encoder.layers.0.mlp.fc1.bias"]
    vision["vision_model.extra"] = torch.ones(1)
    torch.save(vision, tmp_path / tower / "pytorch_model.bin")
    message = (
        r"vision_weights .*1 missing: encoder\.layers\.0\.mlp\.fc1\.bias; 1 unexpected: vision_model\.extra"
    )
    with pytest.raises(ConfigError, match=message):
        build(options)


def test_a_tower_of_another_size_is_found_before_any_weight_is_read(folders, tmp_path, monkeypatch):
    options, _, _ = folders()
    (tmp_path / "llava" / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=r"image size 56x56 isn't the vision tower's 28x28; .*height: 28"):
        build(options, (56, 56))
    with pytest.raises(ConfigError, match=r"base_vlm .* has neither model.safetensors nor pytorch_model.bin"):
        build(options)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mistakes = [
        (
            {"decoder": "mistral"},
            r"decoder: 'mistral' was asked for, and base_vlm .* set decoder: llama",
        ),
        (
            {"vision_tower": "siglip"},
            r"vision_weights .* is a 'clip_vision_model', not what .*: siglip",
        ),
        ({"vision_weights": str(tmp_path / "no")}, r"vision_weights '.*no' can't be loaded"),
        ({"base_vlm": str(tmp_path / "no")}, r"base_vlm '.*no' can't be loaded"),
        ({"base_vlm": str(tmp_path / "clip")}, r"base_vlm '.*' is a 'clip', none of llava_llama, llama,"),
    ]
    for change, message in mistakes:
        with pytest.raises(ConfigError, match=message) as error:
            build({**options, **change})
        assert "\n" not in str(error.value)


def test_broken_files_are_one_line(folders, tmp_path):
    options, language, _ = folders()
    shard = tmp_path / "llava" / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"base_vlm: cannot read '.*model-00001-of-00002.safetensors'"):
        build(options)
    shard.unlink()
    with pytest.raises(ConfigError, match=r"lacks model-00001-of-00002.safetensors; copy all shards"):
        build(options)
    write_shards(tmp_path / "llava", language)
    config = tmp_path / "llava" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 1000}))
    with pytest.raises(ConfigError, match="the tokenizer has 1528 entries, the model only 1000"):
        build(options)
    config.write_text("{")
    with pytest.raises(ConfigError, match=r"base_vlm .* can't be loaded \(Expecting property name"):
        build(options)


def test_the_tokenizer_of_the_published_directory_is_a_sentencepiece_model(folders, tmp_path, sample):
    """LLaVA-3D ships ``tokenizer.model`` alone; a prompt begins with its ``<s>``."""
    from sentencepiece import sentencepiece_model_pb2

    options, _, _ = folders()
    (tmp_path / "llava" / "tokenizer.json").unlink()
    model = sentencepiece_model_pb2.ModelProto()
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    merged = [
        "\u2581",
        "o",
        "p",
        "e",
        "n",
        "i",
        "t",
        "\u2581o",
        "en",
        "\u2581op",
        "\u2581open",
        "\u2581i",
        "\u2581it",
    ]
    for rank, (piece, kind) in enumerate([*pieces, *((text, 1) for text in merged)]):
        model.pieces.add(piece=piece, score=float(-rank), type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    (tmp_path / "llava" / "tokenizer.model").write_bytes(model.SerializeToString())
    described = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "llava" / "tokenizer_config.json").write_text(json.dumps({**described, "unk_token": "<unk>"}))
    vlm = build(options)
    fields = vlm.collator(PromptSpec())([sample("open it")])
    valid = fields.input_ids[0][fields.attention_mask[0]].tolist()
    assert [vlm.tokenizer.id_to_token(i) for i in valid] == [
        "<s>", *["<image>"] * 8, "\u2581open", "\u2581it"
    ]  # fmt: skip
    assert vlm.special.pad == vlm.tokenizer.token_to_id("<unk>")


def test_assets_round_trip(folders, tmp_path, make_batch):
    options, _, _ = folders("mistral")
    first = build(options).eval()
    first.add_answers(Answers())
    first.save_assets(tmp_path / "assets")
    # Architecture and tokenizer come from the assets, not from the config.
    again = build({}, assets=tmp_path / "assets").eval()
    again.load_state_dict(first.state_dict())
    batch = make_batch(first)
    outs = [
        vlm(vlm.embed_text(batch), vlm.embed_images(batch.images, batch.view_mask), None, VLMRequest((2,)))
        for vlm in (first, again)
    ]
    assert torch.equal(outs[0].hidden[2], outs[1].hidden[2])
    assert torch.equal(make_batch(again).tokens.input_ids, batch.tokens.input_ids)
    assert (again.shapes.decoder, again.shapes.tower) == ("mistral", "clip")
    (tmp_path / "assets" / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(ConfigError, match="is of a 'qwen2_5_vl', not of vlm 'llava3d'"):
        build({}, assets=tmp_path / "assets")
    with pytest.raises(ConfigError, match=r"nothing/config.json: no such file"):
        build({}, assets=tmp_path / "nothing")
