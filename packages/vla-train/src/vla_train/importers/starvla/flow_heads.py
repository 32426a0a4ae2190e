"""QwenGR00T, QwenPI and QwenPI_v3: flow-matching heads.

Shape legend: W width of the blocks, T action steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vla_core.errors import UserError

from vla_train.importers.common.ledger import Ledger, join
from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.plan import Choices, Plan, StateUse
from vla_train.importers.starvla.run_files import StarVLARun
from vla_train.importers.starvla.shared import horizon_of, reads_state

HEAD = "action_model"
MODEL = f"{HEAD}.model"
BLOCK = rf"{HEAD}\.model\.transformer_blocks\.(\d+)\."
SIZES = {"DiT-B": (768, 12, "B"), "DiT-L": (1536, 32, "L")}
"""Name -> width, heads, our name."""


def _one_embodiment(weight: Tensor) -> Tensor:
    return weight[None]


def _as_is(weight: Tensor) -> Tensor:
    return weight


def _swap_halves(x: Tensor) -> Tensor:
    """[shift | scale] -> [scale | shift]."""
    shift, scale = x.chunk(2)
    return torch.cat([scale, shift])


def shared_options(run: StarVLARun, ledger: Ledger) -> dict[str, Any]:
    """The choices that all these heads share, from the config, and sizes from the tensors."""
    node: dict[str, Any] = {
        "compat": "starvla",
        "n_blocks": ledger.count(BLOCK),
        "n_future_tokens": ledger.shape(f"{HEAD}.future_tokens.weight")[0],
        "decoder_hidden": ledger.shape(f"{HEAD}.action_decoder.layer1.weight")[0],
    }
    if f"{HEAD}.state_encoder.layer1.weight" in ledger.state:
        node["state_hidden"] = ledger.shape(f"{HEAD}.state_encoder.layer1.weight")[0]
    action = "framework.action_model"
    known = {
        f"{action}.num_inference_timesteps": "steps",
        f"{action}.num_timestep_buckets": "n_buckets",
        f"{action}.noise_beta_alpha": "time_alpha",
        f"{action}.noise_s": "time_s",
        f"{action}.diffusion_model_cfg.dropout": "dropout",
    }
    for theirs, ours in known.items():
        value = run.get(theirs)
        if value is not None:
            node[ours] = value
    beta = run.get(f"{action}.noise_beta_beta", 1.0)
    if float(beta) != 1.0:
        raise UserError(f"{run.config_file}: {action}.noise_beta_beta is {beta}; only 1.0 can be imported")
    return node


def _state_dim(ledger: Ledger, state: bool) -> int | None:
    return ledger.shape(f"{HEAD}.state_encoder.layer1.weight")[1] if state else 0


def _move_shared(ledger: Ledger, horizon: int, width: int, state: bool, categories: bool) -> None:
    """Encoders, decoder, time, positions; ``categories``: our weights are per embodiment."""
    lift = _one_embodiment if categories else _as_is
    ledger.linear(f"{MODEL}.timestep_encoder.timestep_embedder.linear_1", "head.time.mlp.up")
    ledger.linear(f"{MODEL}.timestep_encoder.timestep_embedder.linear_2", "head.time.mlp.down")
    encoder = f"{HEAD}.action_encoder"
    ledger.linear(f"{encoder}.layer1", "head.action_encoder.embed", lift)
    mix = f"{encoder}.layer2.weight"
    ledger.move(mix, "head.action_encoder.mix_action.weight", lambda w: lift(w[:, :width]), "action half")
    ledger.move(mix, "head.action_encoder.mix_time.weight", lambda w: lift(w[:, width:]), "time half")
    ledger.move(f"{encoder}.layer2.bias", "head.action_encoder.mix_action.bias")
    ledger.linear(f"{encoder}.layer3", "head.action_encoder.out", lift)
    ledger.linear(f"{HEAD}.action_decoder.layer1", "head.decoder.up", lift)
    ledger.linear(f"{HEAD}.action_decoder.layer2", "head.decoder.down", lift)
    ledger.move(f"{HEAD}.future_tokens.weight", "head.future")
    position = f"{HEAD}.position_embedding.weight"
    if position in ledger.state:
        rows = ledger.shape(position)[0]
        if rows < horizon:
            raise UserError(f"{ledger.file}: '{position}' has {rows} rows, fewer than the horizon {horizon}")
        note = f"rows {horizon} to {rows - 1} are dead: no step reads them" if rows > horizon else ""
        ledger.move(position, "head.action_position", lambda w: w[:horizon], note)
    else:
        zeros = torch.zeros(horizon, width)
        ledger.new("head.action_position", zeros, "zeros: the run has no positions (add_pos_embed: false)")
    if state:
        ledger.linear(f"{HEAD}.state_encoder.layer1", "head.state_encoder.up", lift)
        ledger.linear(f"{HEAD}.state_encoder.layer2", "head.state_encoder.down", lift)
    else:
        ledger.drop(f"{HEAD}.state_encoder.", "dead: the run feeds no state to the head")


def _move_block(ledger: Ledger, i: int, cross: bool) -> None:
    theirs, ours = f"{MODEL}.transformer_blocks.{i}", f"head.blocks.{i}"
    ledger.linear(f"{theirs}.norm1.linear", f"{ours}.ada.modulation")
    q, k, v = (f"{theirs}.attn1.to_{x}" for x in "qkv")
    for part in ("weight", "bias"):
        if cross:
            ledger.move(f"{q}.{part}", f"{ours}.q.{part}")
            ledger.move([f"{k}.{part}", f"{v}.{part}"], f"{ours}.context_kv.{part}", join)
        else:
            ledger.move([f"{x}.{part}" for x in (q, k, v)], f"{ours}.qkv.{part}", join)
    ledger.linear(f"{theirs}.attn1.to_out.0", f"{ours}.out")
    ledger.linear(f"{theirs}.ff.net.0.proj", f"{ours}.ff.up")
    ledger.linear(f"{theirs}.ff.net.2", f"{ours}.ff.down")


def import_blocks(ledger: Ledger, horizon: int, width: int, state: bool, n_blocks: int) -> None:
    """A layerwise head all of whose blocks attend to the backbone, but for its read-out."""
    _move_shared(ledger, horizon, width, state, categories=False)
    for i in range(n_blocks):
        _move_block(ledger, i, cross=True)


def import_read_out(ledger: Ledger) -> None:
    """The final AdaLN and projection."""
    ledger.linear(f"{MODEL}.proj_out_2", "head.final")
    for part in ("weight", "bias"):
        name = f"final_norm.modulation.{part}"
        ledger.move(f"{MODEL}.proj_out_1.{part}", f"head.{name}", _swap_halves, "halves swapped")


def import_groot(run: StarVLARun, ledger: Ledger, choices: Choices, _: Backbone) -> Plan:
    """QwenGR00T: a DiT over the last hidden state."""
    width = ledger.shape(f"{HEAD}.future_tokens.weight")[1]
    horizon, state = horizon_of(run, choices), reads_state(run)
    dit = "framework.action_model.diffusion_model_cfg"
    if run.get(f"{dit}.interleave_self_attention", True) is False:
        raise UserError(
            f"{run.config_file}: {dit}.interleave_self_attention is false; a QwenGR00T head whose blocks all "
            "attend to the backbone cannot be imported"
        )
    node = {"name": "groot_flow", **shared_options(run, ledger)}
    kind = str(run.get("framework.action_model.action_model_type", ""))
    heads = run.get(f"{dit}.num_attention_heads")
    if kind in SIZES and SIZES[kind][0] == width and heads in (None, SIZES[kind][1]):
        node["size"] = SIZES[kind][2]
    elif heads is not None:
        node.update(size="custom", width=width, n_heads=int(heads))
    else:
        raise UserError(
            f"{run.config_file}: the weights have width {width}, and neither action_model_type '{kind}' "
            f"({', '.join(SIZES)}) nor {dit}.num_attention_heads tells the number of attention heads; set one"
        )
    node["output_width"] = ledger.shape(f"{MODEL}.proj_out_2.weight")[0]
    repeats = run.get("framework.action_model.repeated_diffusion_steps")
    if repeats is not None:
        node["repeated_diffusion_steps"] = int(repeats)
    _move_shared(ledger, horizon, width, state, categories=True)
    for i in range(node["n_blocks"]):
        _move_block(ledger, i, cross=i % 2 == 0)
    import_read_out(ledger)
    action_dim = ledger.shape(f"{HEAD}.action_decoder.layer2.weight")[0]
    how: StateUse = "vector" if state else "none"
    return Plan("QwenGR00T", horizon, action_dim, _state_dim(ledger, state), node, how)


def _interleaved(run: StarVLARun, choices: Choices) -> tuple[bool, str]:
    """Whether odd blocks self-attend, and how that is known."""
    dit = "framework.action_model.diffusion_model_cfg"
    flag, old = run.get(f"{dit}.interleave_self_attention"), run.get(f"{dit}.use_canonical_forward")
    if old is not None:
        return bool(old), f"use_canonical_forward: {str(bool(old)).lower()}"
    if flag is False:
        return False, "interleave_self_attention: false"
    if choices.dit_blocks is not None:
        return choices.dit_blocks == "interleaved", f"--dit_blocks {choices.dit_blocks}"
    raise UserError(
        f"{run.config_file}: does not tell what the odd blocks of the layerwise head attend to: with this "
        "config StarVLA before 2026-06-16 fed them the backbone (--dit_blocks cross), later ones their own "
        "tokens (--dit_blocks interleaved); pass the one of the release that trained the run"
    )


def import_layerwise(run: StarVLARun, ledger: Ledger, choices: Choices, _: Backbone) -> Plan:
    """QwenPI and QwenPI_v3: block i of the DiT reads layer i of the backbone."""
    v3 = run.get("framework.name") == "QwenPI_v3"
    width = ledger.shape(f"{HEAD}.future_tokens.weight")[1]
    horizon = horizon_of(run, choices)
    given = reads_state(run)
    state = given and not v3
    interleaved, why = _interleaved(run, choices)
    head_dim = int(run.get("framework.action_model.diffusion_model_cfg.attention_head_dim") or 64)
    projected = "project_layers.0.1.weight" in ledger.state
    node = {
        "name": "layerwise_fm",
        **shared_options(run, ledger),
        "width": width,
        "n_heads": width // head_dim,
        "normalize_vl_hidden": False,
        "project_context": "per_layer" if projected else "none",
        "interleave_self_attention": interleaved,
    }
    # QwenPI always trains with two; v3 reads the trainer's.
    repeats = run.get("trainer.repeated_diffusion_steps", 16) if v3 else 2
    node["repeated_diffusion_steps"] = int(repeats)
    _move_shared(ledger, horizon, width, state, categories=False)
    for i in range(node["n_blocks"]):
        cross = i % 2 == 0 or not interleaved
        _move_block(ledger, i, cross)
        if not projected:
            continue
        if cross:
            ledger.linear(f"project_layers.{i}.0", f"head.blocks.{i}.context_in.0")
            ledger.linear(f"project_layers.{i}.1", f"head.blocks.{i}.context_in.1")
        else:
            ledger.drop(f"project_layers.{i}.", "dead: a self-attending block reads no layer")
    ledger.drop(f"{MODEL}.proj_out_", "dead: the layerwise head decodes the last block's output as it is")
    action_dim = ledger.shape(f"{HEAD}.action_decoder.layer2.weight")[0]
    notes = [f"odd blocks attend {'among their own tokens' if interleaved else 'to the backbone'} ({why})"]
    if state and not interleaved:
        notes.append(
            "state: read, but no action attends to it: all blocks of this head see the backbone alone"
        )
    how: StateUse = "none" if not given else "text" if v3 else "vector"
    name = "QwenPI_v3" if v3 else "QwenPI"
    return Plan(name, horizon, action_dim, _state_dim(ledger, state) if not v3 else None, node, how, notes)
