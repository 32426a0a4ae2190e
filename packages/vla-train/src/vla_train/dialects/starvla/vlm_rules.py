"""Rows of the table: conversations and co-training.

One StarVLA YAML serves its three scripts. Here the job says which is meant: ``trainer.job=cotrain`` for
``train_starvla_cotrain.py``, ``vlm`` for ``train_starvlm.py``; without it the YAML is read as
``train_starvla.py`` reads it, without conversations.
"""

from __future__ import annotations

from collections.abc import Callable

from vla_train.dialects.starvla.rules import Apply, Given, Outcome, Rule, Values, converted, dropped

M = "datasets.vlm_data"
OTHER_JOB = "train_starvla.py does not read it; trainer.job=cotrain or trainer.job=vlm does"


def _in_job(
    values: Callable[[Given], Values], note: str = "", jobs: tuple[str, ...] = ("cotrain", "vlm")
) -> Apply:
    """A rule's action that is for a run with conversations alone."""

    def apply(given: Given) -> Outcome:
        if given.whole.get("trainer.job") not in jobs:
            return Outcome(note=OTHER_JOB)
        return Outcome(values(given), note)

    return apply


def _sources(given: Given) -> Values:
    named = any(key.startswith("datasets.vlm.sources") for key in given.whole)
    if not named:
        source = f'{{name: llava, registry: FILE, use: "{given.value}"}}'
        given.refuse(
            "the data sets are a table in StarVLA's code; write it as a YAML file (docs/cotraining.md), and "
            f"add datasets.vlm.sources='[{source}]'"
        )
    return {}


def _vla_scale(given: Given) -> Outcome:
    if given.whole.get("trainer.job") == "cotrain":
        return Outcome({"trainer.loss_scale.vla": given.number()})
    if given.number() == 1.0:
        return Outcome(note="1 is the weight of a term that is not named")
    return Outcome({"trainer.loss_weights.action_loss": given.number()})


RULES: tuple[Rule, ...] = (
    converted(
        f"{M}.dataset_use", "datasets.vlm.sources",
        "with trainer.job cotrain or vlm: by a registry of your own",
        _in_job(_sources, "datasets.vlm.sources is set"),
    ),
    converted(
        f"{M}.per_device_batch_size", "datasets.vlm.batch_size", "with trainer.job cotrain or vlm",
        _in_job(lambda given: {"datasets.vlm.batch_size": given.value}),
    ),
    converted(
        f"{M}.model_max_length", "datasets.vlm.max_tokens", "with trainer.job cotrain or vlm",
        _in_job(lambda given: {"datasets.vlm.max_tokens": given.value}),
    ),
    converted(
        f"{M}.data_flatten", "datasets.vlm.pack", "with trainer.job cotrain or vlm",
        _in_job(lambda given: {"datasets.vlm.pack": given.value in (True, "True", "true")}),
    ),
    dropped(f"{M}.dataformat", "LLaVA's format"),
    dropped(f"{M}.dataset_py", "conversations in LLaVA's format"),
    dropped(f"{M}.model_type", "read from the backbone"),
    *(
        dropped(f"{M}.{key}", "images have one size here: the robot's cameras', or datasets.vlm.image_size")
        for key in ("max_pixels", "min_pixels", "image_size")
    ),
    dropped(f"{M}.base_interval", "of videos, which are not read here"),
    dropped(f"{M}.eval_dataset", "no evaluation on conversations here"),
    dropped(f"{M}.*", "not known here"),
    converted(
        "trainer.loss_scale.vla", "trainer.loss_weights.action_loss",
        "1 is the default; trainer.loss_scale.vla with trainer.job cotrain", _vla_scale,
    ),
    converted(
        "trainer.loss_scale.vlm", "trainer.loss_scale.vlm", "with trainer.job cotrain",
        _in_job(lambda given: {"trainer.loss_scale.vlm": given.number()}, jobs=("cotrain",)),
    ),
)  # fmt: skip
