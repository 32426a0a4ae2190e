"""MapAnythingLlava3DPI: the framework of StarVLA's MapAnythingLlava3D fork (its state of February 2026).

A SigLIP tower and LLaVA-3D's language model, MapAnything's features pooled to one vector beside each image
token, and a layerwise head that reads out as GR00T's does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from vla_core.errors import UserError

from vla_train.importers.common.ledger import Ledger
from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.flow_heads import HEAD, MODEL, import_blocks, import_read_out, shared_options
from vla_train.importers.starvla.plan import Choices, Plan
from vla_train.importers.starvla.run_files import StarVLARun
from vla_train.importers.starvla.shared import reads_state

FORK = "MapAnythingLlava3DPI"
SECTION = "framework.mapanything_llava3d"
COMPAT = "starvla_llava3d"
ROOT = "mapanythingllava3d_vlm_interface.model."
GEOMETRY = f"{ROOT}geometric_model.map_anything_model."
LANGUAGE = f"{ROOT}language_model.model."
TABLE = "vlm.model.language_model.embed_tokens.weight"
HEAD_DIM = 64
"""Width of an attention head of the action model, whatever the config says."""


def is_fork(run: StarVLARun) -> bool:
    """Whether the config's framework is the fork's."""
    names = (run.get("framework.name"), run.get("framework.framework_py"))
    return FORK in map(str, names)


def check_weights(run: StarVLARun, tensors: Iterable[str]) -> None:
    """Stop if ``tensors`` are the fork's and the config is not.

    Its action head has the layerwise head's names but another read-out, so that these weights would load
    into ours and mean something else.

    Raises:
        UserError: that the config is not that of the weights.
    """
    if not is_fork(run) and any(name.startswith(ROOT) for name in tensors):
        raise UserError(
            f"{run.weights}: the weights of StarVLA's MapAnythingLlava3D fork, and {run.config_file} is of "
            f"framework '{run.get('framework.name')}'; give the config.yaml that the run wrote "
            f"(framework.name: {FORK})"
        )


def uses_geometry(run: StarVLARun) -> bool:
    """Whether the run's model had its geometric branch, which an unmerged backbone never loses."""
    if not run.get(f"{SECTION}.base_vlm"):
        return True
    return bool(run.get(f"{SECTION}.use_geometric_branch", run.get(f"{SECTION}.use_geom", True)))


def import_fork(run: StarVLARun, ledger: Ledger, choices: Choices, backbone: Backbone) -> Plan:
    """The whole framework; embedding and geometry follow once the policy's sizes are known."""
    geometry = uses_geometry(run)
    notes: list[str] = []
    _move_backbone(ledger)
    nodes: dict[str, Any] = {}
    if geometry:
        ledger.linear(f"{ROOT}geometric_projector", "fusion.project")
        ledger.linear(f"{ROOT}fusion_projector", "fusion.out")
        nodes = {"geometry": _geometry_node(run, ledger), "fusion": {"name": "mean_pool"}}
        notes.append(
            "geometry: fed as the run fed it (framework.geometry.compat), except where no pixel of a whole "
            "batch is darker than 121 of 255: there the run's code passed -1 to 1 instead of 0 to 1"
        )
    else:
        for part in ("geometric_model", "geometric_projector", "fusion_projector"):
            ledger.drop(f"{ROOT}{part}.", "dead: the run's geometric branch is off")
    head, horizon, state = _head(run, ledger, choices)
    if state and not head["use_concat_cross_context"]:
        notes.append(
            "state: read, but no action attends to it: without use_concat_cross_context the blocks of this "
            "head see the backbone alone"
        )
    return Plan(
        FORK,
        horizon,
        ledger.shape(f"{HEAD}.action_decoder.layer2.weight")[0],
        ledger.shape(f"{HEAD}.state_encoder.layer1.weight")[1] if state else 0,
        head,
        "vector" if state else "none",
        notes,
        size_key="image_size",
        vlm=_vlm_options(run, backbone, notes),
        late=_late(ledger),
        **nodes,
    )


def _head(run: StarVLARun, ledger: Ledger, choices: Choices) -> tuple[dict[str, Any], int, bool]:
    """Node, horizon, and whether the head reads the state."""
    action = "framework.action_model"
    window = run.get(f"{action}.future_action_window_size")
    if choices.horizon is None and window is None:
        raise UserError(f"{run.config_file}: has no {action}.future_action_window_size; pass --horizon T")
    horizon = choices.horizon if choices.horizon is not None else int(window) + 1
    width = ledger.shape(f"{HEAD}.future_tokens.weight")[1]
    state = reads_state(run) and f"{HEAD}.state_encoder.layer1.weight" in ledger.state
    repeats = [run.get(f"{place}.repeated_diffusion_steps") for place in ("trainer", action)]
    node = {
        "name": "layerwise_fm",
        **shared_options(run, ledger),
        "compat": COMPAT,
        "n_heads": width // HEAD_DIM,
        "output_width": ledger.shape(f"{MODEL}.proj_out_2.weight")[0],
        "vl_layer_selection": "first" if run.get(f"{action}.vl_layer_selection") == "first" else "last",
        "normalize_vl_hidden": bool(run.get(f"{SECTION}.normalize_vl_hidden", False)),
        "use_concat_cross_context": bool(run.get(f"{action}.use_concat_cross_context", False)),
        "repeated_diffusion_steps": max(1, int(next((n for n in repeats if n is not None), 4))),
    }
    import_blocks(ledger, horizon, width, state, node["n_blocks"])
    import_read_out(ledger)
    return node, horizon, state


def _move_backbone(ledger: Ledger) -> None:
    tower = f"{ROOT}vision_tower."
    for name in sorted(ledger.state):
        # transformers before version 5 had one module more around the tower.
        inner = name.removeprefix(tower).removeprefix("vision_model.")
        if name.startswith(f"{LANGUAGE}model.layers.") or name == f"{LANGUAGE}model.norm.weight":
            ledger.move(name, f"vlm.model.language_model.{name.removeprefix(f'{LANGUAGE}model.')}")
        elif name.startswith(tower) and not inner.startswith(("head.", "embeddings.position_ids")):
            ledger.move(name, f"vlm.model.vision_tower.{inner}")
    for inner in ("", "vision_model."):
        ledger.drop(f"{tower}{inner}head.", "dead: SigLIP's pooling head, whose output is not read")
        ledger.drop(f"{tower}{inner}embeddings.position_ids", "counts from 0, computed")
    ledger.linear(f"{ROOT}vision_projector", "vlm.model.mm_projector")
    ledger.drop(f"{LANGUAGE}lm_head.weight", "language head: this framework reads no logits")
    for part in ("mm_projector.", "image_newline"):
        ledger.drop(f"{LANGUAGE}model.{part}", "dead: LLaVA's own image path, which the fork goes around")


def _vlm_options(run: StarVLARun, backbone: Backbone, notes: list[str]) -> dict[str, Any]:
    joiner = str(run.get(f"{SECTION}.image_token_joiner", "auto")).strip().lower()
    if joiner in ("space", "spaced"):
        raise UserError(
            f"{run.config_file}: {SECTION}.image_token_joiner puts spaces between the image tokens; a prompt "
            "that has them cannot be imported"
        )
    whitespace = "strip" if run.get(f"{SECTION}.strip_instruction", True) else "keep"
    if run.get(f"{SECTION}.normalize_instruction_whitespace", False):
        whitespace = "collapse"
    options: dict[str, Any] = {"instruction_whitespace": whitespace}
    for key in ("prefix_image_dropout_prob", "prefix_lang_dropout_prob"):
        asked = float(run.get(f"{SECTION}.{key}") or 0.0)
        if not run.get(f"{SECTION}.base_vlm"):
            options[key] = asked
        elif asked != backbone.options.get(key, 0.0):
            notes.append(
                f"{key}: {asked} in the config had no effect (the model was built before it was read); "
                f"{backbone.options.get(key, 0.0)} here, framework.vlm.{key} changes it"
            )
    return options


def _geometry_node(run: StarVLARun, ledger: Ledger) -> dict[str, Any]:
    from vla_geometry.mapanything.sizes import SIZES

    shape = (
        ledger.shape(f"{GEOMETRY}encoder.model.pos_embed"),
        ledger.shape(f"{GEOMETRY}info_sharing.norm.weight"),
    )
    fitting = [size for size, a in SIZES.items() if shape == ((1, 1 + a.grid**2, a.encoder_dim), (a.dim,))]
    if not fitting:
        raise UserError(
            f"{ledger.file}: the geometric model has widths {shape[0][2]} and {shape[1][0]}, those of no "
            f"MapAnything that can be built ({', '.join(SIZES)})"
        )
    module = GEOMETRY.removesuffix(".map_anything_model.")
    frozen = str(run.get("trainer.freeze_modules") or "").split(",")
    return {
        "name": "mapanything",
        "compat": COMPAT,
        "size": fitting[0],
        "dense_heads": False,
        "trainable": not any(name.strip() and f"{module}.".startswith(f"{name.strip()}.") for name in frozen),
    }


def _late(ledger: Ledger) -> Callable[[Mapping[str, Tensor]], None]:
    def moves(own: Mapping[str, Tensor]) -> None:
        from vla_geometry.mapanything.loading import CAMERAS, DENSE, NOT_BUILT, published_name

        def with_reserved(table: Tensor) -> Tensor:
            more = own[TABLE].shape[0] - table.shape[0]
            mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
            return torch.cat([table, mean.expand(more, -1)]) if more > 0 else table

        ledger.move(
            f"{LANGUAGE}model.embed_tokens.weight",
            TABLE,
            with_reserved,
            "with the mean row for each reserved token, which is overwritten before anything reads it",
        )
        for name in sorted(own):
            if name.startswith("geometry."):
                ledger.move(GEOMETRY + published_name(name.removeprefix("geometry.")), name)
        # The published model names two of its dense heads twice.
        for prefix in (*NOT_BUILT, *CAMERAS, *DENSE, "dpt_feature_head.", "dpt_regressor_head."):
            ledger.drop(GEOMETRY + prefix, "dead: the fork reads MapAnything's multi-view features alone")

    return moves
