"""Rows of the table: framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_core.errors import suggest

from vla_train.dialects.starvla.rules import Given, Outcome, Rule, converted, dropped, moved, read_by

A = "framework.action_model"
LLAVA3D = ("MapAnythingLlava3DPI",)
QWEN = (
    "QwenGR00T",
    "QwenDual",
    "QwenPI",
    "QwenPI_v3",
    "QwenMapAnythingPI",
    "QwenOFT",
    "QwenAdapter",
    "QwenFast",
)
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
    # bf16 weights without fp32 masters would hardly move: StarVLA has masters in its engine.
    if given.value in (True, "True", "true"):
        return Outcome({"trainer.precision": "bf16"}, "computes in bf16; the weights keep fp32 masters")
    return Outcome({"framework.vlm.dtype": "float32"})


def _auxiliary(key: str) -> Any:
    return lambda given: Outcome(
        {"framework.auxiliary.name": "alg1", f"framework.auxiliary.{key}": given.value}
    )


_PLACES = ("framework", "framework.mapanything_llava3d", A)
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
    read_by(QWEN, "Qwen's frameworks", converted(
        "framework.qwenvl.base_vlm", "framework.vlm.base_vlm, framework.vlm.name",
        "the backbone by the directory's config.json, else by its name", _base_vlm,
    )),
    read_by(LLAVA3D, LLAVA3D[0], moved("framework.mapanything_llava3d.base_vlm", "framework.vlm.base_vlm")),
    *(
        read_by(LLAVA3D, LLAVA3D[0], moved(f"framework.mapanything_llava3d.{key}", f"framework.vlm.{key}"))
        for key in ("prefix_image_dropout_prob", "prefix_lang_dropout_prob")
    ),
    *(
        read_by(names, who, converted(
            f"framework.{vlm}.attn_implementation", "framework.vlm.attn_implementation",
            "flash_attention_2 becomes sdpa", _attention,
        ))
        for vlm, names, who in (
            ("qwenvl", QWEN, "Qwen's frameworks"), ("mapanything_llava3d", LLAVA3D, LLAVA3D[0])
        )
    ),
    converted(
        "framework.qwenvl.use_bf16", "trainer.precision, framework.vlm.dtype",
        "true: precision bf16, masters stay fp32; false: float32", _dtype,
    ),
    *(
        dropped(f"framework.{vlm}.{key}", DERIVED)
        for vlm in ("qwenvl", "mapanything_llava3d")
        for key in ("vl_hidden_dim", "num_vl_layers")
    ),
    dropped("framework.dino.dino_backbone", "read by QwenDual alone; its encoder is framework.geometry here"),
    dropped("framework.reduce_in_full_precision", "StarVLA never reads it"),
    *_BRANCH,
)  # fmt: skip
