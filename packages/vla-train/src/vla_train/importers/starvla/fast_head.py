"""QwenFast: the backbone speaks action tokens; the head has no weights of its own."""

from __future__ import annotations

from vla_core.errors import UserError

from vla_train.importers.common.ledger import Ledger
from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.plan import Choices, Plan
from vla_train.importers.starvla.run_files import StarVLARun
from vla_train.importers.starvla.shared import horizon_of


def import_fast(run: StarVLARun, ledger: Ledger, choices: Choices, backbone: Backbone) -> Plan:
    """The tokens ``<robot_action_i>`` are those of the base VLM; what they mean is in ``--fast``."""
    key = "framework.action_model.action_dim"
    if run.get(key) is None:
        raise UserError(
            f"{run.config_file}: has no {key}, and QwenFast's weights do not tell it; add it there"
        )
    if choices.fast is None:
        raise UserError(
            "--fast is missing: a StarVLA run does not keep its action tokenizer; pass --fast DIR, the copy "
            "of physical-intelligence/fast that the run used (in its playground/Pretrained_models/fast)"
        )
    backbone.token_id("<robot_action_0>")
    node = {"name": "fast", "tokenizer": choices.fast, "compat": "starvla"}
    notes = [
        "answers: each token among those that still make a whole chunk (StarVLA takes the likeliest of the "
        "whole vocabulary, and its decoding fails where they make none)",
        "training loss: StarVLA's, over the whole vocabulary and also of the turn's end (head.compat: none "
        "is over the action tokens alone)",
    ]
    return Plan(
        "QwenFast", horizon_of(run, choices), int(run.get(key)), None, node, "none", notes,
        speaks=True, own_size=True,
    )  # fmt: skip
