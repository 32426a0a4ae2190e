from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM
from vla_core.batch import Role
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import PromptSpec, VisionLanguageModel, VLMRequest
from vla_core.registry import load
from vla_vlm import Llava3D, Llava3DConfig, Llava3DTinyConfig
from vla_vlm.common.towers import TOWERS

CAUSAL = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM}
TINY = Llava3DTinyConfig(
    hidden_size=64, n_layers=3, n_heads=4, intermediate_size=96, vision_hidden=32, vision_depth=3,
    vision_heads=2, vision_intermediate=48, init_std=0.1,
)  # fmt: skip
decoders = pytest.mark.parametrize("decoder", list(CAUSAL))


def build(n_views=2, size=(42, 42), **options):
    torch.manual_seed(0)
    return Llava3D.build(Llava3DConfig(**{"tiny": TINY, **options}), n_views, size)


def run(vlm, batch, request, prefix=None):
    return vlm(vlm.embed_text(batch), vlm.embed_images(batch.images, batch.view_mask), prefix, request)


def queries(vlm, n):
    torch.manual_seed(3)
    return nn.Embedding(n, vlm.dims.hidden_size)


@pytest.fixture(scope="module")
def vlm():
    return build().eval()


def test_is_found_by_entry_point_and_keeps_the_protocol(vlm):
    assert load("vla.vlms", "llava3d") is Llava3D
    assert isinstance(vlm, VisionLanguageModel)
    assert vlm.dims.grid == (3, 3)


@decoders
@pytest.mark.parametrize("tower", list(TOWERS))
@pytest.mark.parametrize("padding", ["right", "left"])
def test_hidden_states_equal_transformers(make_batch, decoder, tower, padding):
    """The whole decoder of transformers, on the embeddings with our image tokens in their places."""
    vlm = build(decoder=decoder, vision_tower=tower, padding=padding).eval()
    theirs = CAUSAL[decoder](vlm.language_model.config).eval()
    theirs.model.load_state_dict(vlm.language_model.state_dict())
    batch = make_batch(vlm)
    tower_class = TOWERS[tower].model_class(vlm.shapes.vision).eval()
    tower_class.load_state_dict(vlm.model.vision_tower.state_dict(), strict=False)
    pixels = vlm.vision_runner.normalize(batch.images.flatten(0, 1))
    with torch.no_grad():
        seen = tower_class(pixels, output_hidden_states=True)
        features = seen.last_hidden_state if tower == "siglip" else seen.hidden_states[-2][:, 1:]
        fields = batch.tokens
        embeds = vlm.language_model.embed_tokens(fields.input_ids)
        places = fields.roles == Role.IMAGE
        embeds[places] = vlm.model.mm_projector(features).reshape(-1, 64)
        hidden = theirs(
            inputs_embeds=embeds,
            attention_mask=fields.attention_mask.long(),
            position_ids=fields.position_ids[0],
            output_hidden_states=True,
        ).hidden_states
        out = run(vlm, batch, VLMRequest((0, 1, 2, 3)))
    valid = fields.attention_mask
    assert valid.sum(1).min() > 18
    for layer in range(4):
        torch.testing.assert_close(out.hidden[layer][valid], hidden[layer][valid], atol=1e-5, rtol=1e-5)


@decoders
def test_published_names_and_shapes_on_the_meta_device(decoder):
    sizes = {"siglip": ((224, 224), (16, 16)), "clip": ((336, 336), (24, 24))}
    for tower, (size, grid) in sizes.items():
        with torch.device("meta"):
            vlm = build(2, size, base_vlm="7b", decoder=decoder, vision_tower=tower)
            text = copy.deepcopy(vlm.language_model.config)
            text.vocab_size = 32000
            theirs = CAUSAL[decoder](text)
            whole = TOWERS[tower].model_class(vlm.shapes.vision)
        assert vlm.dims.grid == grid
        assert (vlm.dims.hidden_size, vlm.dims.n_layers) == (4096, 32)
        expected = {k.replace("model.", "model.language_model.", 1): v.shape
                    for k, v in theirs.state_dict().items() if k != "lm_head.weight"}  # fmt: skip
        expected["model.language_model.embed_tokens.weight"] = torch.Size([32000, 4096])
        expected |= {f"model.vision_tower.{k}": v.shape for k, v in whole.state_dict().items()}
        unread = r"model\.vision_tower\.(head\.|post_layernorm|encoder\.layers\.23\.)"
        if tower == "siglip":
            unread = r"model\.vision_tower\.head\."
        width = vlm.shapes.vision.hidden_size
        expected |= {
            "model.mm_projector.weight": torch.Size([4096, width]),
            "model.mm_projector.bias": torch.Size([4096]),
        }
        expected = {k: v for k, v in expected.items() if not re.match(unread, k)}
        assert {k: v.shape for k, v in vlm.state_dict().items()} == expected
        count = sum(p.numel() for p in theirs.parameters())
        assert count == {"llama": 6_738_415_616, "mistral": 7_241_732_096}[decoder]


def test_image_token_is_a_real_token_with_a_row_of_its_own(vlm, make_batch):
    rows = vlm.language_model.embed_tokens.num_embeddings
    assert rows == vlm.tokenizer.get_vocab_size()
    special = vlm.special
    assert len({special.image, special.prefix, special.query}) == 3
    assert vlm.tokenizer.id_to_token(special.image) == "<image>"
    fields = make_batch(vlm, PromptSpec(n_query=2, n_prefix=3)).tokens
    assert fields.input_ids.max() < rows, "no id is clamped"
    assert (fields.input_ids == special.image).sum(1).tolist() == [18] * 4
    assert fields.counts == {"image": 18, "prefix": 3, "query": 2}


def test_the_short_prompt_and_its_order(vlm, sample):
    fields = vlm.collator(PromptSpec(suffix="Act:", n_query=2, n_prefix=1))([sample("open <image> it")])
    text = vlm.tokenizer.decode(fields.input_ids[0].tolist(), skip_special_tokens=False)
    assert text.startswith("<prefix>" + "<image>" * 18 + " open <image> it Act:<query><query><|endoftext|>")
    roles = fields.roles[0][fields.attention_mask[0]].tolist()
    assert roles[:19] == [Role.PREFIX, *[Role.IMAGE] * 18]
    assert fields.position_ids.shape == (1, *fields.input_ids.shape)
    assert fields.position_ids[0, 0, : len(roles)].tolist() == list(range(len(roles)))
    collator = pickle.loads(pickle.dumps(vlm.collator(PromptSpec())))
    assert torch.equal(collator([sample("a")]).input_ids, vlm.collator(PromptSpec())([sample("a")]).input_ids)


@pytest.mark.parametrize(
    ("mode", "seen"), [("keep", " open\t  it \n"), ("strip", "open\t  it"), ("collapse", "open it")]
)
def test_the_whitespace_of_an_instruction(vlm, sample, mode, seen):
    collator = pickle.loads(pickle.dumps(build(instruction_whitespace=mode).collator(PromptSpec())))
    plain = vlm.collator(PromptSpec())
    assert torch.equal(collator([sample(" open\t  it \n")]).input_ids, plain([sample(seen)]).input_ids)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<image> {instruction}", ["prefix", "images", " ", "instruction", "suffix", "queries"]),
        (
            "USER: <image>\n{instruction} ASSISTANT:",
            ["USER: ", "prefix", "images", "\n", "instruction", "suffix", "queries", " ASSISTANT:"],
        ),
        (
            "{prefix}{images}{instruction}{suffix}{queries}",
            ["prefix", "images", "instruction", "suffix", "queries"],
        ),
    ],
)
def test_prompt_forms(prompt, expected):
    assert list(Llava3DConfig(prompt=prompt).template().pieces) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{instruction}"}, "prompt must have <image> once"),
        ({"prompt": "<image> <image> {instruction}"}, "prompt must have <image> once"),
        ({"prompt": "<image> {images} {instruction}"}, "<image>, not both"),
        ({"prompt": "<image>"}, "prompt must have each placeholder once"),
        ({"prefix_image_dropout_prob": 1.0}, r"prefix_image_dropout_prob'?: must be in \[0, 1\), got 1.0"),
        ({"prefix_lang_dropout_prob": -0.1}, "prefix_lang_dropout_prob'?: must be in"),
        ({"vision_weights": "x"}, "vision_weights: base_vlm 'tiny' is built without weights"),
        ({"init": "pretrained"}, "base_vlm 'tiny' has no weights to load"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        Llava3DConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_runs_exactly_the_requested_layers(vlm, make_batch, layer):
    calls = []
    hooks = [x.register_forward_hook(lambda *_: calls.append(1)) for x in vlm.language_model.layers]
    out = run(vlm, make_batch(vlm), VLMRequest((layer,)))
    for hook in hooks:
        hook.remove()
    assert len(calls) == layer
    assert set(out.hidden) == {layer}


def test_reserved_tokens_are_overwritten(vlm, make_batch):
    batch = make_batch(vlm, PromptSpec(n_query=3, n_prefix=2))
    embedding, prefix = queries(vlm, 3), torch.randn(4, 2, 64)
    visual = vlm.embed_images(batch.images, batch.view_mask)
    assert visual.grid == (2, 3, 3)
    assert visual.deepstack is None
    out = vlm(vlm.embed_text(batch), visual, prefix, VLMRequest((0, 3), embedding))
    assert torch.equal(out.gather("image", 0, 18), visual.tokens)
    assert torch.equal(out.gather("prefix", 0, 2), prefix)
    assert torch.equal(out.gather("query", 0, 3), embedding.weight.expand(4, -1, -1))


def test_a_missing_view_is_masked(vlm, make_batch):
    batch = make_batch(vlm)
    batch.view_mask[1, 0] = False
    changed = copy.deepcopy(batch)
    changed.images[1, 0] = 255 - changed.images[1, 0]
    with torch.no_grad():
        a, b = run(vlm, batch, VLMRequest((3,))), run(vlm, changed, VLMRequest((3,)))
    assert torch.equal(a.hidden[3][a.mask], b.hidden[3][b.mask])
    assert a.spans["image"].sum(1).tolist() == [18, 9, 18, 18]


@decoders
def test_eager_and_gradient_checkpointing_change_nothing(make_batch, decoder):
    plain = build(decoder=decoder).train()
    batch = make_batch(plain)
    for options in ({"attn_implementation": "eager"}, {"gradient_checkpointing": True}):
        other = build(decoder=decoder, **options).train()
        grads = []
        for model in (plain, other):
            model.zero_grad()
            out = run(model, batch, VLMRequest((3,)))
            out.hidden[3][out.mask].square().mean().backward()
            grads.append({name: p.grad for name, p in model.named_parameters()})
        assert all(grad is not None for grad in grads[0].values())
        for name, grad in grads[0].items():
            torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("which", ["image", "lang"])
def test_prefix_dropout_is_for_training_alone(make_batch, which):
    vlm = build(**{f"prefix_{which}_dropout_prob": 0.5})
    batch = make_batch(vlm, PromptSpec(n_query=2, n_prefix=1))

    def embedded():
        visual = vlm.embed_images(batch.images, batch.view_mask).tokens
        return visual if which == "image" else vlm.embed_text(batch).embeds

    clean = embedded().detach() if not vlm.train(False).training else None
    assert torch.equal(embedded(), clean)
    vlm.train()
    dropped = embedded()
    zero, doubled = (dropped == 0).all(-1), torch.isclose(dropped, 2 * clean).all(-1)
    text = torch.ones_like(zero)
    if which == "lang":
        text = (batch.tokens.roles == Role.TEXT) | (batch.tokens.roles == Role.INSTRUCTION)
    assert (zero ^ doubled)[text].all(), "a token is dropped or scaled as a whole"
    assert 0.2 < zero[text].float().mean() < 0.8
    assert torch.equal(dropped[~text], clean[~text])
    other = {"image": "embed_text", "lang": "embed_images"}[which]
    arguments = (batch,) if which == "image" else (batch.images, batch.view_mask)
    first, second = (getattr(vlm, other)(*arguments) for _ in range(2))
    name = "embeds" if which == "image" else "tokens"
    assert torch.equal(getattr(first, name), getattr(second, name)), "the other kind is left alone"


def test_bfloat16_keeps_tables_in_float32(make_batch):
    vlm = build().eval()
    batch = make_batch(vlm)
    with torch.no_grad():
        exact = run(vlm, batch, VLMRequest((3,)))
        vlm.to(torch.bfloat16)
        half = run(vlm, batch, VLMRequest((3,)))
    assert vlm.rope.inv_freq.dtype == vlm.vision_runner.normalize.mean.dtype == torch.float32
    a, b = exact.hidden[3][exact.mask].flatten(), half.hidden[3][half.mask].float().flatten()
    assert torch.cosine_similarity(a, b, dim=0) > 0.999
    assert {p.dtype for p in build(dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_traces_without_graph_breaks(vlm, make_batch):
    batch = make_batch(vlm)
    batch.tokens.all_views = True
    request = VLMRequest((3,))

    def step(batch):
        return run(vlm, batch, request).hidden[3]

    with torch.no_grad():
        compiled = torch.compile(step, backend="eager", fullgraph=True)(batch)
        torch.testing.assert_close(compiled, step(batch))


def test_mistakes_name_what_and_how(vlm, make_batch, sample):
    batch = make_batch(vlm)
    with pytest.raises(ValueError, match=r"images are \[4, 1, 3, 42, 42\].* built for \[B, 2, 3, 42, 42\]"):
        vlm.embed_images(batch.images[:, :1], batch.view_mask[:, :1])
    with pytest.raises(ConfigError, match=r"48x48 must be square and .*patch_size 14; resize to 42x42"):
        build(size=(48, 48))
    with pytest.raises(ConfigError, match=r"56x42 must be square"):
        build(size=(56, 42))
    with torch.device("meta"), pytest.raises(ConfigError, match=r"image size 256x256 isn't .* 224x224; put"):
        build(size=(256, 256), base_vlm="7b")
    with pytest.raises(UserError, match=r"more than vlm.max_text_tokens = 64"):
        vlm.collator(PromptSpec())([sample("go " * 200)])
    short = build(decoder="mistral")
    short.shapes.text.sliding_window = 80
    with pytest.raises(ConfigError, match=r"82 tokens is longer than the sliding_window of 80"):
        short.collator(PromptSpec())
    with pytest.raises(ConfigError, match=r"tiny.hidden_size / tiny.n_heads must be a multiple of 2"):
        Llava3DTinyConfig(hidden_size=90)
    with pytest.raises(ConfigError, match=r"tiny.n_heads 4 must be a multiple of n_kv_heads 3"):
        Llava3DTinyConfig(n_kv_heads=3)
