"""Rows of the table: framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_core.errors import suggest

from vla_train.dialects.starvla.rules import Given, Outcome, Rule, converted, dropped, moved, only

A = "framework.action_model"
D = f"{A}.diffusion_model_cfg"
H = "framework.head"
GROOT = ("QwenGR00T", "QwenDual")
FLOW = (*GROOT, "QwenPI", "QwenPI_v3", "MapAnythingLlava3DPI", "QwenMapAnythingPI")
SIZES = {"DiT-B": "B", "DiT-L": "L"}
DERIVED = "read from the backbone"
VLMS = (
    ("qwen2.5-vl", "qwen2_5_vl"),
    ("qwen2_5-vl", "qwen2_5_vl"),
    ("nora", "qwen2_5_vl"),
    ("qwen3-vl", "qwen3_vl"),
)
"""Part of a model's name -> our part, where there is no config.json to ask."""


def _name(given: Given) -> Outcome:
    from vla_train.presets import list_presets

    ours = {"QwenFM": "QwenPI"}.get(given.value, given.value)
    if given.framework not in list_presets():
        given.refuse(f"this project has no such framework{suggest(str(ours), list_presets())}")
    return Outcome({"framework.name": ours})


def _vlm_part(name: str) -> str | None:
    file = Path(name) / "config.json"
    if file.is_file():
        kind = json.loads(file.read_text("utf-8")).get("model_type")
        return {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl"}.get(kind)
    return next((part for words, part in VLMS if words in name.lower()), None)


def _base_vlm(given: Given) -> Outcome:
    name = str(given.value)
    values: dict[str, Any] = {"framework.vlm.base_vlm": name}
    # tiny, 3b: a size of the preset's own backbone.
    if ("/" not in name and "-" not in name) or "framework.vlm.name" in given.whole:
        return Outcome(values)
    part = _vlm_part(name)
    if part is None:
        given.refuse(
            "neither a config.json there nor the name tells which backbone it is; set framework.vlm.base_vlm "
            "and framework.vlm.name (qwen2_5_vl, qwen3_vl; vla-train --list shows all)"
        )
    return Outcome({"framework.vlm.name": part, **values})


def _attention(given: Given) -> Outcome:
    if given.value == "flash_attention_2":
        return Outcome(
            {"framework.vlm.attn_implementation": "sdpa"}, "torch's own kernels, flash attention among them"
        )
    return Outcome({"framework.vlm.attn_implementation": given.value})


def _dtype(given: Given) -> Outcome:
    return Outcome({"framework.vlm.dtype": "bfloat16" if given.value else "float32"})


def _window(given: Given) -> Outcome:
    if f"{A}.action_horizon" in given.whole or f"{A}.num_actions_chunk" in given.whole:
        return Outcome(note="action_horizon (or num_actions_chunk) decides")
    return Outcome({"framework.horizon": int(given.value) + 1}, "one more: the present step counts")


def _chunk(given: Given) -> Outcome:
    if given.framework != "QwenAdapter" and f"{A}.action_horizon" in given.whole:
        return Outcome(note="only QwenAdapter reads it")
    return Outcome({"framework.horizon": given.value})


def _horizon(given: Given) -> Outcome:
    if given.framework == "QwenAdapter" and f"{A}.num_actions_chunk" in given.whole:
        return Outcome(note="QwenAdapter reads num_actions_chunk")
    return Outcome({"framework.horizon": given.value})


def _kind(given: Given) -> Outcome:
    if given.framework not in GROOT:
        return Outcome(note="the framework names its head")
    if given.value not in SIZES:
        given.refuse("use DiT-B or DiT-L, or framework.head: {size: custom, width: ..., n_heads: ...}")
    return Outcome({"framework.head.size": SIZES[given.value]})


def _hidden(given: Given) -> Outcome:
    if given.framework not in GROOT:
        return Outcome(
            note="the layerwise and other heads have their own (head.state_hidden, head.decoder_hidden)"
        )
    return Outcome({"framework.head.state_hidden": given.value, "framework.head.decoder_hidden": given.value})


def _repeats(given: Given) -> Outcome:
    if given.framework == "QwenPI":
        return Outcome({"framework.head.repeated_diffusion_steps": 2}, "StarVLA's QwenPI always takes 2")
    if given.framework == "QwenPI_v3":
        return Outcome(note="QwenPI_v3 reads trainer.repeated_diffusion_steps")
    return Outcome({"framework.head.repeated_diffusion_steps": given.value})


def _flow(ours: str, note: str = "") -> Any:
    def apply(given: Given) -> Outcome:
        if given.framework not in FLOW:
            return Outcome(note="only flow-matching heads read it")
        return Outcome({f"framework.head.{ours}": given.value}, note)

    return apply


def _groot(ours: str) -> Any:
    def apply(given: Given) -> Outcome:
        if given.framework not in GROOT:
            return Outcome(note=DERIVED)
        return Outcome({f"framework.head.{ours}": given.value})

    return apply


def _interleave(given: Given) -> Outcome:
    if given.framework in GROOT and given.value is False:
        given.refuse("the blocks of groot_flow alternate between the backbone and their own tokens")
    if given.framework in GROOT:
        return Outcome(note="so it is here")
    return Outcome(
        note="here each block has both attentions; framework.head.compat=starvla builds StarVLA's blocks"
    )


def _dit_width(given: Given) -> Outcome:
    if given.value is None:
        return Outcome({"framework.head.project_context": "none"}, "the backbone's width")
    return Outcome({"framework.head.width": given.value})


def _head(ours: str) -> Any:
    return lambda given: Outcome({f"framework.head.{ours}": given.value})


def _auxiliary(key: str) -> Any:
    return lambda given: Outcome(
        {"framework.auxiliary.name": "alg1", f"framework.auxiliary.{key}": given.value}
    )


_PLACES = ("framework", "framework.mapanything_llava3d", A)
_FORK = tuple(
    converted(f"{place}.{key}", f"framework.head.{key}", "", _head(key))
    for place in _PLACES
    for key in ("use_concat_cross_context", "vl_layer_selection", "normalize_vl_hidden")
)
_BRANCH = tuple(
    moved(f"{place}.use_geometric_branch", "framework.use_geometric_branch") for place in _PLACES[1:]
)

_AUXILIARY = tuple(
    converted(f"{place}.{key}", f"framework.auxiliary.{key}", "alg1's losses", _auxiliary(key))
    for place in (*_PLACES, "trainer")
    for key in ("loss_w_dyn", "loss_w_geo", "loss_w_reg", "sagr_phase_a_steps", "sagr_phase_b_ramp_steps")
)

RULES: tuple[Rule, ...] = (
    *_AUXILIARY,
    converted("framework.name", "framework.name", "QwenFM is QwenPI", _name),
    converted(
        "framework.qwenvl.base_vlm", "framework.vlm.base_vlm, framework.vlm.name",
        "the backbone by the directory's config.json, else by its name", _base_vlm,
    ),
    moved("framework.mapanything_llava3d.base_vlm", "framework.vlm.base_vlm"),
    *(
        moved(f"framework.mapanything_llava3d.{key}", f"framework.vlm.{key}")
        for key in ("prefix_image_dropout_prob", "prefix_lang_dropout_prob")
    ),
    *(
        converted(
            f"framework.{vlm}.attn_implementation", "framework.vlm.attn_implementation",
            "flash_attention_2 becomes sdpa", _attention,
        )
        for vlm in ("qwenvl", "mapanything_llava3d")
    ),
    converted("framework.qwenvl.use_bf16", "framework.vlm.dtype", "true is bfloat16", _dtype),
    *(
        dropped(f"framework.{vlm}.{key}", DERIVED)
        for vlm in ("qwenvl", "mapanything_llava3d")
        for key in ("vl_hidden_dim", "num_vl_layers")
    ),
    dropped("framework.dino.dino_backbone", "read by QwenDual alone; its encoder is framework.geometry here"),
    dropped("framework.reduce_in_full_precision", "StarVLA never reads it"),
    converted(f"{A}.action_model_type", "framework.head.size", "QwenGR00T: DiT-B is B, DiT-L is L", _kind),
    dropped(f"{A}.action_dim", "read from the data set"),
    dropped(f"{A}.state_dim", "read from the data set"),
    converted(f"{A}.action_horizon", "framework.horizon", "", _horizon),
    converted(f"{A}.num_actions_chunk", "framework.horizon", "QwenAdapter", _chunk),
    converted(f"{A}.future_action_window_size", "framework.horizon", "plus 1; action_horizon wins", _window),
    only(f"{A}.past_action_window_size", (0, None), "no past actions", "past actions are no target here"),
    converted(
        f"{A}.hidden_size", "framework.head.state_hidden, framework.head.decoder_hidden", "QwenGR00T", _hidden
    ),
    dropped(f"{A}.action_hidden_dim", DERIVED),
    only(f"{A}.add_pos_embed", (True,), "actions have positions", "actions always have positions here"),
    dropped(f"{A}.max_seq_len", "there are as many positions as steps"),
    converted(f"{A}.num_target_vision_tokens", f"{H}.n_future_tokens", "", _flow("n_future_tokens")),
    converted(f"{A}.noise_beta_alpha", "framework.head.time_alpha", "", _flow("time_alpha")),
    only(f"{A}.noise_beta_beta", (1, 1.0), "Beta(alpha, 1)", "times are drawn from Beta(alpha, 1)"),
    converted(f"{A}.noise_s", "framework.head.time_s", "", _flow("time_s")),
    converted(f"{A}.num_timestep_buckets", "framework.head.n_buckets", "", _flow("n_buckets")),
    converted(f"{A}.num_inference_timesteps", "framework.head.steps", "", _flow("steps")),
    converted(
        f"{A}.repeated_diffusion_steps", "framework.head.repeated_diffusion_steps",
        "QwenPI always takes 2, QwenPI_v3 the trainer's", _repeats,
    ),
    converted(f"{D}.dropout", "framework.head.dropout", "", _flow("dropout")),
    dropped(f"{D}.final_dropout", "head.dropout is after every attention and feed-forward"),
    converted(f"{D}.interleave_self_attention", "", "each block of QwenPI has both here", _interleave),
    dropped(f"{D}.use_canonical_forward", "a switch between releases of StarVLA"),
    only(f"{D}.norm_type", ("ada_norm",), "AdaLN", "the blocks have AdaLN"),
    only(f"{D}.positional_embeddings", (None,), "learned ones, on the actions", "positions are learned"),
    converted(f"{D}.num_layers", "framework.head.n_blocks", "QwenGR00T", _groot("n_blocks")),
    converted(f"{D}.output_dim", "framework.head.output_width", "QwenGR00T", _groot("output_width")),
    converted(f"{D}.action_dit_hidden_dim", "framework.head.width", "QwenPI_v3; null: none", _dit_width),
    dropped(f"{D}.cross_attention_dim", DERIVED),
    dropped(f"{D}.input_embedding_dim", DERIVED),
    only(f"{D}.attention_head_dim", (64, None), "heads of 64", "set framework.head.n_heads"),
    dropped(f"{D}.num_attention_heads", "width / 64; framework.head.n_heads sets another number"),
    converted(f"{A}.action_query_num", "framework.head.n_queries", "QwenAdapter", _head("n_queries")),
    dropped(f"{A}.hidden_dim", "framework.head.width is 1024 unless set (QwenAdapter)"),
    dropped(f"{A}.use_pro_version", "a choice of StarVLA's adapter blocks (framework.head.compat=starvla)"),
    dropped(f"{A}.use_proprio", "the head reads the state if the samples have one (include_state)"),
    dropped(f"{A}.phase", "StarVLA never reads it in effect"),
    *_FORK,
    *_BRANCH,
)  # fmt: skip
