"""QwenOFT and QwenAdapter: heads that regress a chunk from query tokens."""

from __future__ import annotations

from vla_core.errors import UserError

from vla_train.importers.common.ledger import Ledger, join
from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.plan import Choices, Plan
from vla_train.importers.starvla.run_files import StarVLARun
from vla_train.importers.starvla.shared import EMBEDDINGS, VLM, horizon_of, reads_state

MODEL = "action_model.model"
BLOCK = r"action_model\.model\.mlp_resnet_blocks\.(\d+)\."
QUERY = "\N{LEFT-POINTING MAGNIFYING GLASS}"
"""The token that StarVLA writes once for every query."""

SUFFIX = " Please predict the next {horizon} robot actions: <action>"
AFTER = "<action>."
ADAPTER_HEADS = 8


def _move_in_and_out(ledger: Ledger) -> None:
    ledger.linear(f"{MODEL}.layer_norm1", "head.norm_in")
    ledger.linear(f"{MODEL}.fc1", "head.linear_in")
    ledger.linear(f"{MODEL}.layer_norm2", "head.norm_out")
    ledger.linear(f"{MODEL}.fc2", "head.linear_out")


def import_oft(run: StarVLARun, ledger: Ledger, choices: Choices, backbone: Backbone) -> Plan:
    """QwenOFT: the query token T times in the prompt, an MLP on the last hidden state at each."""
    horizon = horizon_of(run, choices)
    action_dim, width = ledger.shape(f"{MODEL}.fc2.weight")
    node = {
        "name": "mlp_regression",
        "width": width,
        "n_blocks": ledger.count(BLOCK),
        "use_state": False,
        "suffix": SUFFIX,
    }
    _move_in_and_out(ledger)
    for i in range(ledger.count(BLOCK)):
        ledger.linear(f"{MODEL}.mlp_resnet_blocks.{i}.ffn.0", f"head.blocks.{i}.norm")
        ledger.linear(f"{MODEL}.mlp_resnet_blocks.{i}.ffn.1", f"head.blocks.{i}.linear")
    number = backbone.token_id(QUERY)
    table = next((VLM + name for name in EMBEDDINGS if VLM + name in ledger.state), VLM + EMBEDDINGS[0])
    rows = ledger.shape(table)[0]
    if number >= rows:
        raise UserError(f"{ledger.file}: '{table}' has {rows} rows, and the query token is {number}")
    ledger.move(
        table,
        "head.queries.weight",
        lambda w: w[number].expand(horizon, -1),
        f"row {number}, the query token, once a step",
    )
    return Plan(
        "QwenOFT", horizon, action_dim, None, node, "text" if reads_state(run) else "none",
        after_queries=AFTER, queries_in_instruction=True,
    )  # fmt: skip


def import_adapter(run: StarVLARun, ledger: Ledger, choices: Choices, _: Backbone) -> Plan:
    """QwenAdapter: learned queries in the prompt, a bridge network over the backbone's layers."""
    n_queries, width = ledger.shape("action_query")
    horizon, _wide = ledger.shape("action_model.action_chunk_embeddings")
    said = horizon_of(run, choices)
    if said != horizon:
        raise UserError(
            f"{ledger.file}: has action tokens for {horizon} steps, the config (or --horizon) says {said}"
        )
    action_dim = ledger.shape(f"{MODEL}.fc2.weight")[0]
    pro = f"{MODEL}.mlp_resnet_blocks.0.k_self.weight" in ledger.state
    state = reads_state(run) and "proprio_projector.fc1.weight" in ledger.state
    node = {
        "name": "adapter",
        "compat": "starvla",
        "n_queries": n_queries,
        "n_blocks": ledger.count(BLOCK),
        "width": width,
        "n_heads": ADAPTER_HEADS,
        "use_pro_version": pro,
        "suffix": SUFFIX,
    }
    ledger.move("action_query", "head.queries.weight")
    ledger.move("action_model.action_chunk_embeddings", "head.action_tokens")
    _move_in_and_out(ledger)
    for i in range(ledger.count(BLOCK)):
        theirs, ours = f"{MODEL}.mlp_resnet_blocks.{i}", f"head.blocks.{i}"
        ledger.linear(f"{theirs}.q_proj", f"{ours}.q")
        ledger.linear(f"{theirs}.o_proj", f"{ours}.out")
        ledger.linear(f"{theirs}.ffn.0", f"{ours}.ff_norm")
        ledger.linear(f"{theirs}.ffn.1", f"{ours}.ff")
        ledger.move(f"{theirs}.gating_factor", f"{ours}.gate")
        pairs = {"own_kv": ("k_proj", "v_proj")}
        if pro:
            kinds = {"own_kv": "self", "query_kv": "adapter", "context_kv": "task"}
            pairs = {target: (f"k_{kind}", f"v_{kind}") for target, kind in kinds.items()}
        for target, (k, v) in pairs.items():
            for part in ("weight", "bias"):
                ledger.move([f"{theirs}.{k}.{part}", f"{theirs}.{v}.{part}"], f"{ours}.{target}.{part}", join)
    if state:
        ledger.linear("proprio_projector.fc1", "head.state_up")
        ledger.linear("proprio_projector.fc2", "head.state_down")
    else:
        ledger.drop("proprio_projector.", "dead: the run's samples carry no state (include_state: false)")
    state_dim = ledger.shape("proprio_projector.fc1.weight")[1] if state else 0
    notes = [
        "rows of a batch: each as if alone (StarVLA's QwenAdapter lets padding into its attention, so that "
        "rows of unlike lengths change each other)"
    ]
    return Plan(
        "QwenAdapter", horizon, action_dim, state_dim, node, "vector" if state else "none", notes,
        after_queries=AFTER, queries_in_instruction=True,
    )  # fmt: skip
