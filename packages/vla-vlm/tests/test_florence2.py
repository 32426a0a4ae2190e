"""Florence-2's encoder: its numbers and names are transformers', its places are a grid like any other's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessor
from transformers.models.florence2.modeling_florence2 import (
    Florence2ForConditionalGeneration,
    Florence2Model,
)
from vla_core.batch import Role
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, VisionLanguageModel, VisualTokens, VLMRequest
from vla_vlm import Florence2, Florence2TinyConfig, Florence2VLMConfig
from vla_vlm.florence2.shapes import named_shapes, shipped_tokenizer

TINY = Florence2TinyConfig(
    hidden_size=64,
    n_layers=3,
    intermediate_size=96,
    vision_widths=(16, 32),
    vision_depths=(1, 2),
    vision_strides=(4, 2),
    window_size=3,
    init_std=0.2,
)
SIZE = (32, 40)  # 4 x 5 tokens: windows of 3 x 3 do not fit


def build(n_views: int = 2, assets: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    options.setdefault("tiny", TINY)
    return Florence2.build(Florence2VLMConfig(**options), n_views, SIZE, assets).eval()


def run(vlm: Any, batch: Any, request: VLMRequest, prefix: torch.Tensor | None = None) -> Any:
    visual = vlm.embed_images(batch.images, batch.view_mask)
    return vlm(vlm.embed_text(batch), visual, prefix, request)


def reference(vlm: Any) -> Any:
    """transformers' whole model with the same weights in the encoder, and the embedding under both names."""
    model = Florence2Model._from_config(vlm.shapes, attn_implementation="eager").eval()
    own = vlm.model.state_dict()
    own["language_model.shared.weight"] = own["language_model.encoder.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith("language_model.decoder.") for name in missing)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_are_those_of_transformers(make_batch: Any, attention: str) -> None:
    vlm = build(attn_implementation=attention)
    assert isinstance(vlm, VisionLanguageModel)
    batch = make_batch(vlm, PromptSpec())
    out = run(vlm, batch, VLMRequest(layers=(0, 1, 2, 3)))
    processor = CLIPImageProcessor(
        do_resize=False,
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    pixels = processor([i.numpy() for i in batch.images.flatten(0, 1)], return_tensors="pt")["pixel_values"]
    fields = batch.tokens
    with torch.no_grad():
        expected = reference(vlm)(
            input_ids=fields.input_ids,
            pixel_values=pixels,
            attention_mask=fields.attention_mask.long(),
            output_hidden_states=True,
        ).encoder_hidden_states
    assert len(expected) == 4
    for layer in range(4):
        got, want = (h[fields.attention_mask] for h in (out.hidden[layer], expected[layer]))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert out.spans["image"].sum(1).tolist() == [40] * 4
    row = fields.input_ids[0].tolist()
    image, start, end = (vlm.tokenizer.token_to_id(t) for t in ("<image>", "<s>", "</s>"))
    assert row[:43] == [image] * 42 + [start]  # mean and places of two images, as the processor writes them
    assert row[int(fields.attention_mask[0].sum()) - 1] == end


@pytest.mark.parametrize(("size", "parameters"), [("base", 0.23e9), ("large", 0.77e9)])
def test_published_names_and_shapes(size: str, parameters: float) -> None:
    config = Florence2VLMConfig(base_vlm=size)
    with torch.device("meta"):
        vlm = Florence2.build(config, 2, (224, 224))
        full = Florence2Model._from_config(named_shapes(size, config, shipped_tokenizer()))
    own = {name: p.shape for name, p in vlm.model.state_dict().items()}
    assert own == {
        name: p.shape
        for name, p in full.state_dict().items()
        if not name.startswith(("language_model.decoder.", "language_model.shared."))
    }
    # As the paper counts them, decoder included.
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(parameters, rel=0.01)
    assert vlm.dims.grid == (7, 7)


def test_gradients_reach_every_weight(make_batch: Any) -> None:
    vlm = build(gradient_checkpointing=True).train()
    prompt = PromptSpec(n_query=2, n_prefix=3)
    queries, prefix = torch.nn.Embedding(2, 64), torch.randn(4, 3, 64, requires_grad=True)
    out = run(vlm, make_batch(vlm, prompt), VLMRequest((3,), queries), prefix)
    out.gather("query", 3, 2).square().sum().backward()
    dead = [name for name, p in vlm.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    assert queries.weight.grad is not None
    assert prefix.grad is not None


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding_and_missing_views_are_nobody_s_to_read(make_batch: Any, padding: str) -> None:
    vlm = build(padding=padding)
    batch = make_batch(vlm, PromptSpec())
    batch.view_mask[1, 0] = False
    request = VLMRequest((3,))
    before = run(vlm, batch, request)
    batch.images[1, 0] = 255 - batch.images[1, 0]
    batch.tokens.input_ids[batch.tokens.roles == Role.PAD] = 5
    after = run(vlm, batch, request)
    seen = before.mask.clone()
    seen[batch.tokens.roles == Role.PAD] = False
    # The mean of the missing image keeps its place, unread as well: it is the one before its first token.
    first = int((batch.tokens.roles[1] == Role.IMAGE).nonzero()[0])
    assert not before.mask[1, first - 1]
    torch.testing.assert_close(before.hidden[3][seen], after.hidden[3][seen], atol=1e-6, rtol=1e-6)


def test_a_fusion_keeps_the_means(make_batch: Any) -> None:
    vlm = build()
    batch = make_batch(vlm, PromptSpec())
    visual, text = vlm.embed_images(batch.images, batch.view_mask), vlm.embed_text(batch)
    request = VLMRequest((3,))
    base = vlm(text, visual, None, request).hidden[3]
    same = dataclasses.replace(visual, tokens=visual.tokens.clone())
    assert torch.equal(base, vlm(text, same, None, request).hidden[3])
    moved = dataclasses.replace(visual, means=-visual.means)
    assert not torch.allclose(base, vlm(text, moved, None, request).hidden[3], atol=1e-4)
    with pytest.raises(ValueError, match="florence2 needs its own visual tokens"):
        vlm(text, VisualTokens(visual.tokens, visual.mask, visual.grid), None, request)


def test_a_checkpoint_is_built_from_its_assets(tmp_path: Path, make_batch: Any) -> None:
    vlm = build()
    vlm.save_assets(tmp_path)
    other = build(assets=tmp_path)
    other.load_state_dict(vlm.state_dict())
    batch = make_batch(vlm, PromptSpec(suffix="go"))
    outs = [run(v, batch, VLMRequest((3,))).hidden[3] for v in (vlm, other)]
    assert torch.equal(*outs)
    assert torch.equal(make_batch(other, PromptSpec(suffix="go")).tokens.input_ids, batch.tokens.input_ids)
    a, b = ({**v.shapes.to_dict(), "_name_or_path": ""} for v in (vlm, other))
    assert a == b


def published(directory: Path) -> tuple[Path, Any]:
    """What a Florence-2 model is on disk."""
    vlm = build()
    vlm.save_assets(directory)
    torch.manual_seed(3)
    full = Florence2ForConditionalGeneration._from_config(vlm.shapes)
    full.save_pretrained(directory)
    return directory, full


def test_loads_published_weights(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path, full = published(tmp_path)
    PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json")).save_pretrained(path)
    vlm = build(base_vlm=str(path))
    theirs = full.model.state_dict()
    for name, value in vlm.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    drawn = build(base_vlm=str(path), init="random")
    assert drawn.model.state_dict().keys() == vlm.model.state_dict().keys()
    from safetensors.torch import load_file, save_file

    state = load_file(path / "model.safetensors")
    del state["model.multi_modal_projector.image_projection.weight"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="1 missing keys in its weights"):
        build(base_vlm=str(path))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flash_attention_2 cannot do florence2's attention among channels"):
        build(attn_implementation="flash_attention_2")
    with pytest.raises(ConfigError, match=r"image size 30x40 must be a multiple of 8; resize to 32x40"):
        Florence2.build(Florence2VLMConfig(tiny=TINY), 2, (30, 40))
    with pytest.raises(ConfigError, match="is longer than florence2's 50 positions"):
        build(tiny=dataclasses.replace(TINY, max_positions=50)).collator(PromptSpec())
    with pytest.raises(ConfigError, match="can't be loaded"):
        build(base_vlm=str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(ConfigError, match="is a 'bart', not a 'florence2'"):
        build(base_vlm=str(tmp_path))
    with pytest.raises(ConfigError, match="need a value for each stage"):
        Florence2TinyConfig(vision_depths=(1,))
    vlm, one = build(), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"requested layers \[4\] don't exist"):
        vlm.run(torch.zeros(1, 2, 64), one, torch.zeros(1, 1, 2).long(), (4,))
