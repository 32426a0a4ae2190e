"""Rows of the table: framework.action_model."""

from __future__ import annotations

from typing import Any

from vla_train.dialects.starvla.rules import Given, Outcome, Rule, converted, dropped, only, read_by

A = "framework.action_model"
D = f"{A}.diffusion_model_cfg"
FORK = "MapAnythingLlava3DPI"
GROOT = ("QwenGR00T", "QwenDual")
LAYERWISE = ("QwenPI", "QwenPI_v3", FORK, "QwenMapAnythingPI")
FLOW = (*GROOT, *LAYERWISE)
SIZES = {"DiT-B": "B", "DiT-L": "L"}
DERIVED = "read from the backbone"
NOT_HERE = {
    "QwenDiscreteDiffusion": (
        "action_high", "action_low", "decode_schedule", "inpainting_d_schedule", "inpainting_mask",
        "l1_loss_weight", "no_mask_token_prob", "num_bins", "num_inference_steps", "representation",
        "train_mask_schedule", "use_simple_max",
    ),
    "EgoVLA": ("proprio_size", "sep_proprio", "traj_decoder_type"),
}  # fmt: skip
"""A framework of StarVLA that is not here -> what it alone reads of ``action_model``."""


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
    if given.value not in SIZES:
        given.refuse("use DiT-B or DiT-L, or framework.head: {size: custom, width: ..., n_heads: ...}")
    return Outcome({"framework.head.size": SIZES[given.value]})


def _hidden(given: Given) -> Outcome:
    return Outcome({"framework.head.state_hidden": given.value, "framework.head.decoder_hidden": given.value})


def _repeats(given: Given) -> Outcome:
    if given.framework == "QwenPI":
        return Outcome({"framework.head.repeated_diffusion_steps": 2}, "StarVLA's QwenPI always takes 2")
    if given.framework == "QwenPI_v3":
        return Outcome(note="QwenPI_v3 reads trainer.repeated_diffusion_steps")
    if given.framework == FORK and "trainer.repeated_diffusion_steps" in given.whole:
        return Outcome(note="trainer.repeated_diffusion_steps decides")
    return Outcome({"framework.head.repeated_diffusion_steps": given.value})


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


def _flow(theirs: str, ours: str) -> Rule:
    return read_by(FLOW, "flow-matching heads", converted(theirs, f"framework.head.{ours}", "", _head(ours)))


def _groot(theirs: str, ours: str) -> Rule:
    return read_by(GROOT, "QwenGR00T", converted(theirs, f"framework.head.{ours}", "QwenGR00T", _head(ours)))


def _adapter(theirs: str, ours: str) -> Rule:
    rule = converted(theirs, f"framework.head.{ours}", "QwenAdapter", _head(ours))
    return read_by(("QwenAdapter",), "QwenAdapter", rule)


def _only(theirs: str, allowed: tuple[Any, ...], why: str, advice: str) -> Rule:
    return read_by(FLOW, "flow-matching heads", only(theirs, allowed, why, advice))


def _fork(place: str, key: str) -> Rule:
    rule = converted(f"{place}.{key}", f"framework.head.{key}", "", _head(key))
    return read_by(LAYERWISE, "layerwise heads", rule)


RULES: tuple[Rule, ...] = (
    read_by(GROOT, "QwenGR00T", converted(
        f"{A}.action_model_type", "framework.head.size", "QwenGR00T: DiT-B is B, DiT-L is L", _kind,
    )),
    dropped(f"{A}.action_dim", "read from the data set"),
    dropped(f"{A}.state_dim", "read from the data set"),
    converted(f"{A}.action_horizon", "framework.horizon", "", _horizon),
    converted(f"{A}.num_actions_chunk", "framework.horizon", "QwenAdapter", _chunk),
    converted(f"{A}.future_action_window_size", "framework.horizon", "plus 1; action_horizon wins", _window),
    only(f"{A}.past_action_window_size", (0, None), "no past actions", "past actions are no target here"),
    read_by(GROOT, "QwenGR00T", converted(
        f"{A}.hidden_size", "framework.head.state_hidden, framework.head.decoder_hidden", "QwenGR00T", _hidden
    )),
    dropped(f"{A}.action_hidden_dim", DERIVED),
    _only(f"{A}.add_pos_embed", (True,), "actions have positions", "actions always have positions here"),
    dropped(f"{A}.max_seq_len", "there are as many positions as steps"),
    _flow(f"{A}.num_target_vision_tokens", "n_future_tokens"),
    _flow(f"{A}.noise_beta_alpha", "time_alpha"),
    _only(f"{A}.noise_beta_beta", (1, 1.0), "Beta(alpha, 1)", "times are drawn from Beta(alpha, 1)"),
    _flow(f"{A}.noise_s", "time_s"),
    _flow(f"{A}.num_timestep_buckets", "n_buckets"),
    _flow(f"{A}.num_inference_timesteps", "steps"),
    read_by(FLOW, "flow-matching heads", converted(
        f"{A}.repeated_diffusion_steps", "framework.head.repeated_diffusion_steps",
        "QwenPI always takes 2, QwenPI_v3 the trainer's", _repeats,
    )),
    _flow(f"{D}.dropout", "dropout"),
    dropped(f"{D}.final_dropout", "head.dropout is after every attention and feed-forward"),
    read_by(FLOW, "flow-matching heads", converted(
        f"{D}.interleave_self_attention", "", "each block of QwenPI has both here", _interleave,
    )),
    dropped(f"{D}.use_canonical_forward", "a switch between releases of StarVLA"),
    _only(f"{D}.norm_type", ("ada_norm",), "AdaLN", "the blocks have AdaLN"),
    _only(f"{D}.positional_embeddings", (None,), "learned ones, on the actions", "positions are learned"),
    _groot(f"{D}.num_layers", "n_blocks"),
    _groot(f"{D}.output_dim", "output_width"),
    read_by(("QwenPI_v3",), "QwenPI_v3", converted(
        f"{D}.action_dit_hidden_dim", "framework.head.width", "QwenPI_v3; null: none", _dit_width,
    )),
    dropped(f"{D}.cross_attention_dim", DERIVED),
    dropped(f"{D}.input_embedding_dim", DERIVED),
    _only(f"{D}.attention_head_dim", (64, None), "heads of 64", "set framework.head.n_heads"),
    dropped(f"{D}.num_attention_heads", "width / 64; framework.head.n_heads sets another number"),
    _adapter(f"{A}.action_query_num", "n_queries"),
    _adapter(f"{A}.hidden_dim", "width"),
    dropped(f"{A}.use_pro_version", "a choice of StarVLA's adapter blocks (framework.head.compat=starvla)"),
    dropped(f"{A}.use_proprio", "the head reads the state if the samples have one (include_state)"),
    dropped(f"{A}.phase", "StarVLA never reads it in effect"),
    *(
        _fork(place, key)
        for place in ("framework", "framework.mapanything_llava3d", A)
        for key in ("use_concat_cross_context", "vl_layer_selection", "normalize_vl_hidden")
    ),
    *(
        dropped(f"{A}.{key}", f"read by {name} alone, which is not here")
        for name, keys in NOT_HERE.items()
        for key in keys
    ),
)  # fmt: skip
