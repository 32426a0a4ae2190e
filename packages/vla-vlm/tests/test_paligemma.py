"""PaliGemma's prefix: its numbers, names, keys and values are transformers'."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import DynamicCache, PaliGemmaForConditionalGeneration, PaliGemmaModel
from vla_core.dims import KVDims
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, VisionLanguageModel, VLMRequest
from vla_core.registry import load
from vla_vlm import Llava3D, Llava3DConfig, PaliGemma, PaliGemmaTinyConfig, PaliGemmaVLMConfig

TINY = PaliGemmaTinyConfig(
    hidden_size=64, n_layers=3, head_dim=24, intermediate_size=96, vision_hidden=32, vision_depth=2,
    vision_heads=2, vision_intermediate=48, init_std=0.1,
)  # fmt: skip
SIZE = (42, 42)


def build(n_views: int = 2, size: tuple[int, int] = SIZE, assets: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    options.setdefault("tiny", TINY)
    return PaliGemma.build(PaliGemmaVLMConfig(**options), n_views, size, assets)


def run(vlm: Any, batch: Any, request: VLMRequest, prefix: torch.Tensor | None = None) -> Any:
    return vlm(vlm.embed_text(batch), vlm.embed_images(batch.images, batch.view_mask), prefix, request)


def shake(vlm: Any) -> Any:
    """Norms start at (1 + 0): give them values, so that the sum shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in vlm.language_model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return vlm.eval()


@pytest.fixture(scope="module")
def vlm() -> Any:
    return shake(build())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_hidden_states_keys_and_values_are_those_of_transformers(
    make_batch: Any, padding: str, attention: str
) -> None:
    vlm = shake(build(padding=padding, attn_implementation=attention))
    theirs = PaliGemmaModel._from_config(vlm.shapes, attn_implementation="eager").eval()
    theirs.load_state_dict(vlm.model.state_dict())
    batch = make_batch(vlm)
    fields, cache = batch.tokens, DynamicCache()
    layers = (1, 2, 3)
    with torch.no_grad():
        out = run(vlm, batch, VLMRequest((0, *layers), kv=layers))
        expected = theirs(
            input_ids=fields.input_ids,
            pixel_values=batch.images.flatten(0, 1).float() / 127.5 - 1,
            attention_mask=fields.attention_mask.long(),
            position_ids=fields.position_ids[0],
            token_type_ids=torch.zeros_like(fields.input_ids),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        ).hidden_states
    valid = fields.attention_mask
    assert valid.sum(1).min() > 18
    assert len(expected) == 4
    for layer in range(4):
        got, want = out.hidden[layer][valid], expected[layer][valid]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert set(out.kv) == {*layers}
    for layer in layers:
        kept = cache.layers[layer - 1]
        for got, want in zip(out.kv[layer], (kept.keys, kept.values), strict=True):
            assert got.shape == (4, 1, valid.shape[1], 24)
            torch.testing.assert_close(got[:, 0][valid], want[:, 0][valid], atol=1e-5, rtol=1e-5)
    assert torch.equal(out.position_ids, fields.position_ids)
    assert vlm.dims.kv == KVDims(4, 1, 24, 10_000.0)


def test_the_prompt_is_the_published_one(vlm: Any, make_batch: Any) -> None:
    assert load("vla.vlms", "paligemma") is PaliGemma
    assert isinstance(vlm, VisionLanguageModel)
    fields = make_batch(vlm, instructions=["open it"]).tokens
    valid = fields.input_ids[0][fields.attention_mask[0]].tolist()
    text = vlm.tokenizer.decode(valid, skip_special_tokens=False)
    assert text == "<image>" * 18 + "<bos>open it\n"
    assert fields.position_ids[0, 0, : len(valid)].tolist() == list(range(1, len(valid) + 1))


def test_published_names_and_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        vlm = build(3, (224, 224), base_vlm="3b")
        theirs = PaliGemmaForConditionalGeneration(copy.deepcopy(vlm.shapes))
    expected = {k: v.shape for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    assert {k: v.shape for k, v in vlm.state_dict().items()} == expected
    assert sum(p.numel() for p in vlm.parameters()) == 2_923_466_480
    assert vlm.dims.grid == (16, 16)
    assert vlm.dims.kv == KVDims(8, 1, 256, 10_000.0)
    assert (vlm.dims.hidden_size, vlm.dims.n_layers, vlm.dims.decoder) == (2048, 18, False)


def test_a_module_made_on_the_meta_device_works_once_it_has_weights(vlm: Any, make_batch: Any) -> None:
    with torch.device("meta"):
        empty = build()
    full = empty.to_empty(device="cpu").eval()
    full.load_state_dict(vlm.state_dict())
    batch = make_batch(vlm)
    with torch.no_grad():
        a, b = (run(model, batch, VLMRequest((3,))) for model in (vlm, full))
    assert torch.equal(a.hidden[3], b.hidden[3])


@pytest.mark.parametrize(
    ("request_", "runs"),
    [
        (VLMRequest((0,)), 0),
        (VLMRequest((2,)), 2),
        (VLMRequest((3,), kv=(1,)), 3),
        # The highest layer's keys and values need its input alone.
        (VLMRequest(kv=(1, 3)), 2),
        (VLMRequest((1,), kv=(1,)), 1),
        (VLMRequest(kv=(1,)), 0),
    ],
)
def test_runs_no_layer_that_nobody_needs(vlm: Any, make_batch: Any, request_: Any, runs: int) -> None:
    calls: list[int] = []
    hooks = [x.mlp.register_forward_hook(lambda *_: calls.append(1)) for x in vlm.language_model.layers]
    out = run(vlm, make_batch(vlm), request_)
    for hook in hooks:
        hook.remove()
    assert len(calls) == runs
    assert (set(out.hidden), set(out.kv)) == (set(request_.layers), set(request_.kv))


def test_gradients_through_keys_and_values_alone_with_and_without_checkpointing(make_batch: Any) -> None:
    prompt = PromptSpec(n_query=2, n_prefix=3)
    grads = []
    for options in ({}, {"gradient_checkpointing": True}):
        vlm = shake(build(**options)).train()
        prefix = torch.ones(4, 3, 64, requires_grad=True)
        torch.manual_seed(3)
        queries = nn.Embedding(2, 64)
        out = run(vlm, make_batch(vlm, prompt), VLMRequest((), queries, kv=(1, 2, 3)), prefix)
        sum(x[:, 0][out.mask].square().mean() for pair in out.kv.values() for x in pair).backward()
        assert prefix.grad is not None
        assert queries.weight.grad is not None
        grads.append({name: p.grad for name, p in vlm.named_parameters() if p.grad is not None})
    last = "model.language_model.layers.2."
    unread = {name for name, _ in vlm.named_parameters()} - set(grads[0])
    assert all(name.startswith((last, "model.language_model.norm")) for name in unread)
    assert f"{last}self_attn.k_proj.weight" in grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-6, rtol=1e-4)


def test_padding_and_missing_views_are_nobodys_to_read(vlm: Any, make_batch: Any) -> None:
    batch = make_batch(vlm)
    batch.view_mask[1, 0] = False
    changed = copy.deepcopy(batch)
    changed.images[1, 0] = 255 - changed.images[1, 0]
    changed.tokens.input_ids[~changed.tokens.attention_mask] = 7
    request = VLMRequest((3,), kv=(3,))
    with torch.no_grad():
        a, b = run(vlm, batch, request), run(vlm, changed, request)
    assert torch.equal(a.hidden[3][a.mask], b.hidden[3][b.mask])
    assert torch.equal(a.kv[3][0][:, 0][a.mask], b.kv[3][0][:, 0][b.mask])
    assert a.spans["image"].sum(1).tolist() == [18, 9, 18, 18]


def test_a_missing_view_takes_no_positions(make_batch: Any) -> None:
    """A row without its second camera is, to the bit of rounding, the row of a robot that has one camera."""
    two, one = shake(build()), shake(build(1))
    one.load_state_dict(two.state_dict())
    batch, alone = make_batch(two), make_batch(one)
    batch.view_mask[:, 1] = False
    alone.images.copy_(batch.images[:, :1])
    request = VLMRequest((3,), kv=(3,))
    with torch.no_grad():
        a, b = run(two, batch, request), run(one, alone, request)
    assert torch.equal(a.position_ids[0][a.mask], b.position_ids[0][b.mask])
    assert a.position_ids.amax(dim=(0, 2)).tolist() == a.mask.sum(1).tolist()
    for got, want in ((a.hidden[3], b.hidden[3]), (a.kv[3][0][:, 0], b.kv[3][0][:, 0])):
        torch.testing.assert_close(got[a.mask], want[b.mask], atol=1e-5, rtol=1e-5)


def test_half_precision_rounds_the_scale_as_published(make_batch: Any) -> None:
    exact, half = shake(build()), shake(build()).to(torch.bfloat16)
    batch = make_batch(exact)
    with torch.no_grad():
        a, b = (run(vlm, batch, VLMRequest((3,), kv=(2,))) for vlm in (exact, half))
    assert half.rope.inv_freq.dtype == torch.float32
    assert b.kv[2][0].dtype == b.kv[2][1].dtype == torch.bfloat16
    x, y = a.hidden[3][a.mask].flatten(), b.hidden[3][b.mask].float().flatten()
    assert torch.cosine_similarity(x, y, dim=0) > 0.999
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        key, value = run(exact, batch, VLMRequest(kv=(2,))).kv[2]
    assert key.dtype == value.dtype


def test_traces_without_graph_breaks(vlm: Any, make_batch: Any) -> None:
    batch = make_batch(vlm)

    def step(batch: Any) -> Any:
        out = run(vlm, batch, VLMRequest((2,), kv=(3,)))
        return out.hidden[2], *out.kv[3]

    with torch.no_grad():
        compiled = torch.compile(step, backend="eager", fullgraph=True)(batch)
        torch.testing.assert_close(compiled, step(batch))


def test_mistakes_name_what_and_how(vlm: Any, make_batch: Any) -> None:
    batch = make_batch(vlm)
    with pytest.raises(ValueError, match=r"images are \[4, 1, 3, 42, 42\].* built for \[B, 2, 3, 42, 42\]"):
        vlm.embed_images(batch.images[:, :1], batch.view_mask[:, :1])
    with pytest.raises(ConfigError, match=r"48x48 must be square and .*patch_size 14; resize to 42x42"):
        build(size=(48, 48))
    with pytest.raises(ConfigError, match=r"image size 256x256 isn't .* 224x224; put .*height: 224") as error:
        build(size=(256, 256), base_vlm="3b")
    assert "\n" not in str(error.value)
    for request in (VLMRequest(kv=(0,)), VLMRequest(kv=(4,))):
        with pytest.raises(ValueError, match=r"no keys and values of layers \[\d\]: .* layers 1 to 3"):
            run(vlm, batch, request)
    with pytest.raises(ValueError, match=r"layers \[9\] don't exist"):
        run(vlm, batch, VLMRequest((9,)))
    other = Llava3D.build(Llava3DConfig(), 1, (28, 28))
    with pytest.raises(ValueError, match="serves none"):
        run(other, make_batch(other), VLMRequest(kv=(1,)))
    with pytest.raises(ConfigError, match=r"tiny.n_heads 4 must be a multiple of n_kv_heads 3"):
        PaliGemmaTinyConfig(n_kv_heads=3)
    with pytest.raises(ConfigError, match=r"tiny.head_dim must be even"):
        PaliGemmaTinyConfig(head_dim=3)


def write_published(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint in the layout of google/paligemma-3b-pt-224, old names of keys included."""
    made = shake(build(1))
    made.save_assets(path)
    tree = json.loads((path / "config.json").read_text())
    tree["vision_config"]["vision_use_head"] = False
    (path / "config.json").write_text(json.dumps(tree))
    weights = {}
    for name, value in made.model.state_dict().items():
        group, _, rest = name.partition(".")
        group = {"vision_tower": "vision_tower.vision_model", "language_model": "language_model.model"}.get(
            group, group
        )
        weights[f"{group}.{rest}"] = value.clone()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return {f"model.{name}": value for name, value in made.model.state_dict().items()}


def test_a_published_directory_loads_strictly(tmp_path: Path, make_batch: Any) -> None:
    path = tmp_path / "paligemma"
    weights = write_published(path)
    loaded = build(1, base_vlm=str(path)).eval()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    shapes_only = build(1, base_vlm=str(path), init="random")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert shapes_only.state_dict()[name].shape == weights[name].shape
    # What a checkpoint of a policy brings: architecture and tokenizer, weights later.
    loaded.save_assets(tmp_path / "assets")
    again = build(1, assets=tmp_path / "assets").eval()
    again.load_state_dict(loaded.state_dict())
    batch = make_batch(loaded)
    outs = [run(vlm, batch, VLMRequest((3,))) for vlm in (loaded, again)]
    assert torch.equal(outs[0].hidden[3], outs[1].hidden[3])
    assert torch.equal(make_batch(again).tokens.input_ids, batch.tokens.input_ids)
    with pytest.raises(ConfigError, match=r"image size 56x56 isn't the vision tower's 42x42"):
        build(1, (56, 56), base_vlm=str(path))


def test_weights_and_directories_that_do_not_fit_are_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "paligemma"
    write_published(path)
    config = json.loads((path / "config.json").read_text())
    deeper = copy.deepcopy(config)
    deeper["text_config"]["num_hidden_layers"] = 4
    second = copy.deepcopy(config)
    second["text_config"] = {"model_type": "gemma2", "vocab_size": 64, "num_hidden_layers": 1}
    small = copy.deepcopy(config)
    small["text_config"] |= {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    cases = [
        (deeper, {}, r"base_vlm '.*': 9 missing keys in its weights, first 'model.language_model.layers.3"),
        (second, {}, r"is a 'paligemma on gemma2', not a 'paligemma on gemma'"),
        ({"model_type": "gemma"}, {}, r"is a 'gemma', not a 'paligemma on gemma'; name a PaliGemma model"),
        (small, {"init": "random"}, r"the tokenizer has \d+ entries, the model only 100"),
    ]
    for tree, options, message in cases:
        (path / "config.json").write_text(json.dumps(tree))
        with pytest.raises(ConfigError, match=message) as error:
            build(1, base_vlm=str(path), **options)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"base_vlm '.*no' can't be loaded .* or one of tiny, 3b"):
        build(1, base_vlm=str(tmp_path / "no"))
