"""Attention implementations: refused where they can't run, and given the mask they understand."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from vla_core.batch import Role
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import PromptSpec, VLMRequest
from vla_vlm import Qwen25VLConfig
from vla_vlm.common import kernels
from vla_vlm.common.kernels import FLASH, check_available, check_runs, for_kernel

INSTALLED = importlib.util.find_spec("flash_attn") is not None


@pytest.mark.skipif(INSTALLED, reason="flash_attn is installed")
def test_flash_attention_is_refused_where_it_is_not_installed(kind: Any) -> None:
    with pytest.raises(ConfigError) as error:
        kind.build(2, (48, 48), attn_implementation=FLASH)
    assert "attn_implementation: flash_attention_2 needs the package flash_attn" in str(error.value)
    assert "set sdpa" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_names_are_unknown() -> None:
    check_available("sdpa")
    check_available("eager")
    from vla_core.config import build_config

    with pytest.raises(ConfigError, match="did you mean 'flash_attention_2'"):
        build_config(Qwen25VLConfig, {"attn_implementation": "flash_attention"}, "framework.vlm")


def test_flash_attention_is_refused_off_a_gpu_and_in_float32(
    kind: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = flash(kind, monkeypatch)
    monkeypatch.setattr("vla_vlm.common.model.check_runs", check_runs)
    batch = make_batch(vlm)
    with pytest.raises(
        UserError, match=r"runs on a CUDA device in half precision, this is cpu in torch\.float32"
    ):
        vlm.embed_images(batch.images, batch.view_mask)
    check_runs("sdpa", torch.zeros(1))


def flash(
    kind: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] = (48, 48), **options: Any
) -> Any:
    """A model that takes itself for one with flash attention, with a stand-in of the same contract."""
    vlm = kind.build(2, size, **options).eval()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, stand_in)
    monkeypatch.setattr("vla_vlm.common.model.check_runs", lambda *args: None)
    object.__setattr__(vlm.config, "attn_implementation", FLASH)
    for config in (vlm.model.language_model.config, vlm.model.visual.config):
        config._attn_implementation = FLASH
    return vlm


def stand_in(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Flash attention's contract: valid keys [B, S], causal from the end, zeros for queries left out."""
    assert attention_mask is None or attention_mask.ndim == 2
    q, s = query.shape[2], key.shape[2]
    causal = module.is_causal if is_causal is None else is_causal
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    mask = torch.ones(1, 1, q, s, dtype=torch.bool)
    if causal and q > 1:
        mask = mask.tril(s - q)
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None]
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.nan_to_num(0.0).transpose(1, 2), None


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("missing", [False, True])
def test_flash_attention_gets_what_sdpa_computes(
    kind: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch, padding: str, missing: bool
) -> None:
    """Windows, grouped heads, padding and missing views; what is not valid is nobody's to read."""
    plain = kind.build(2, (48, 64), padding=padding).eval()
    vlm = flash(kind, monkeypatch, (48, 64), padding=padding)
    vlm.load_state_dict(plain.state_dict())
    batch = make_batch(plain, PromptSpec())
    if missing:
        batch.view_mask[0, 1] = False
        batch.tokens.all_views = False
    outs = []
    for model in (plain, vlm):
        with torch.no_grad():
            visual = model.embed_images(batch.images, batch.view_mask)
            outs.append(model(model.embed_text(batch), visual, None, VLMRequest((1, 3))))
    for layer in (1, 3):
        a, b = (out.hidden[layer][out.mask] for out in outs)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (batch.tokens.roles == Role.PAD).any()


class Words:
    """Six answers that nobody writes down."""

    tokens = tuple(f"<robot_action_{i}>" for i in range(6))
    max_length = 3

    def __call__(self, actions: Any, mask: Any) -> list[int]:
        return []


def test_flash_attention_speaks_what_sdpa_speaks(
    kind: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query against kept keys: padding, a missing view and the room that is not yet filled stay out."""
    prompt = PromptSpec(answer_ids=Words())
    plain, vlm = kind.build(2, (48, 48), padding="left").eval(), flash(kind, monkeypatch, padding="left")
    spoken = []
    for model in (plain, vlm):
        model.add_answers(Words())
        model.load_state_dict(plain.state_dict())
        batch = make_batch(model, prompt)
        batch.view_mask[1, 0] = False
        with torch.no_grad():
            visual = model.embed_images(batch.images, batch.view_mask)
            decoder = model(model.embed_text(batch), visual, None, VLMRequest(decoder=2)).decoder
            spoken.append([decoder.logits, *(decoder.step(torch.tensor([1, 0, 5, 2])) for _ in range(2))])
    for a, b in zip(*spoken, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_mask_for_each_query_is_refused() -> None:
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ConfigError, match="cannot express this model's attention mask; set sdpa"):
        for_kernel(mask, FLASH, torch.float32)
    keys = torch.tensor([[[[True, False]]]])
    assert for_kernel(keys, FLASH, torch.float32).tolist() == [[True, False]]  # type: ignore[union-attr]
    assert for_kernel(keys, "sdpa", torch.float32) is keys
    eager = kernels.for_kernel(keys, "eager", torch.float32)
    assert eager is not None
    assert eager[0, 0, 0, 1] < -1e30
