"""Rows of the table: datasets, and the pipeline that stands in StarVLA's data code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_core.errors import ConfigError

from vla_train.dialects.starvla.mixtures import MIXTURES, Modes
from vla_train.dialects.starvla.rules import Given, Outcome, Rule, converted, dropped, moved, only

V = "datasets.vla_data"
TEXT_STATE = ("QwenPI_v3", "QwenOFT")
DECODING = "how videos are decoded; PyAV here"


def is_on(value: Any) -> bool:
    """StarVLA's flags may be text."""
    return value not in (False, None, "False", "false")


def _datasets(given: Given) -> Outcome:
    if given.whole.get("trainer.job") == "vlm":
        return Outcome(note="trainer.job: vlm has no robots")
    if "datasets.train" in given.whole:
        return Outcome(note="datasets.train is set")
    root = given.whole.get(f"{V}.data_root_dir")
    if root is None:
        given.refuse(f"{V}.data_root_dir is not set")
    mix = str(given.value)
    names = MIXTURES[mix][1] if mix in MIXTURES else ()
    if not names and (Path(str(root)) / mix).is_dir():
        names = (mix,)
    if not names:
        given.refuse(
            "the mixture is a list in StarVLA's code; write its data sets as "
            f"datasets.train='[{{name: lerobot, path: {root}/FOLDER}}, ...]' instead of data_mix"
        )
    return Outcome({"datasets.train": [{"name": "lerobot", "path": f"{root}/{name}"} for name in names]})


def _root(given: Given) -> Outcome:
    if given.whole.get("trainer.job") == "vlm":
        return Outcome(note="trainer.job: vlm has no robots")
    if f"{V}.data_mix" not in given.whole and "datasets.train" not in given.whole:
        given.refuse("data_mix is missing; or write datasets.train='[{name: lerobot, path: DIR}]'")
    return Outcome(note="joined with data_mix")


def _cot(given: Given) -> Outcome:
    text = str(given.value or "{instruction}")
    # A token is two characters or more; static shapes want the room reserved.
    room = -(-(64 + len(text) // 2) // 16) * 16
    values = {"framework.vlm.cot_prompt": text, "framework.vlm.max_text_tokens": room}
    return Outcome(values, "with room for its text")


def _piped(given: Given) -> Outcome:
    if not given.whole_run:
        given.refuse("only a StarVLA YAML has it; here images and state are framework.transforms")
    return Outcome(note="see framework.transforms")


def _mode(given: Given) -> Outcome:
    if given.value == "abs":
        return Outcome(note="actions as recorded")
    groups = given.whole.get(f"{V}.action_mode_apply_keys")
    if given.value not in ("delta", "rel") or not groups:
        given.refuse(
            "name the action groups and their state groups in framework.transforms, e.g. "
            "{name: relative_actions, mode: relative, groups: {arm: arm_state}}"
        )
    return _piped(given)


def _normalize(whole: Mapping[str, Any], with_state: bool, where: str) -> tuple[dict[str, Any], str]:
    """The ``normalize`` step, and where its modes are from."""
    mix = str(whole.get(f"{V}.data_mix"))
    modes = MIXTURES[mix][0] if mix in MIXTURES else None
    if "datasets.train" in whole or modes is None:
        why = "datasets.train is set" if modes is not None else "StarVLA's modes stand in its code"
        theirs = "" if modes is None else f"; there: {modes.step(with_state)}"
        return Modes("q99", "q99").step(True), f"q99 for every group: {why}{theirs}"
    if modes.sin_cos and with_state:
        raise ConfigError(
            f"{where}{V}.include_state: StarVLA gives sine and cosine of each state dim of '{mix}' to the "
            "model, and no transform here does; set it to false, or write framework.transforms"
        )
    return modes.step(with_state), f"the modes of StarVLA's '{mix}'"


def pipeline(whole: Mapping[str, Any], framework: str, where: str) -> tuple[list[dict[str, Any]], str]:
    """``framework.transforms``: what StarVLA's loader and data configs do; and a note on the normalisation.

    Args:
        whole: all dotted keys and values.
        framework: our preset's name.
        where: ``file:line: `` of ``include_state``, for errors.

    Raises:
        ConfigError: a state that no transform here makes.
    """
    size = whole.get(f"{V}.obs_image_size") or [224, 224]
    steps: list[dict[str, Any]] = [
        {"name": "resize", "height": int(size[1]), "width": int(size[0]), "interpolation": "bicubic"}
    ]
    mode = whole.get(f"{V}.action_mode", "abs")
    if mode in ("delta", "rel"):
        prefix = f"{V}.action_mode_state_map."
        states = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
        groups = {
            str(key).removeprefix("action."): str(states.get(key, key)).split(".", 1)[-1]
            for key in whole.get(f"{V}.action_mode_apply_keys", [])
        }
        name = {"delta": "delta", "rel": "relative"}[mode]
        steps.append({"name": "relative_actions", "groups": groups, "mode": name})
    with_state = is_on(whole.get(f"{V}.include_state", False))
    step, note = _normalize(whole, with_state, where)
    steps.append(step)
    if not with_state:
        steps.append({"name": "drop_state"})
    elif framework in TEXT_STATE:
        steps.append({"name": "state_as_text"})
    return steps, note


RULES: tuple[Rule, ...] = (
    only(f"{V}.dataset_py", ("lerobot_datasets",), "LeRobot data sets", "only LeRobot data sets are read so"),
    converted(f"{V}.data_root_dir", "datasets.train", "with data_mix", _root),
    converted(
        f"{V}.data_mix", "datasets.train",
        "StarVLA's mixtures of a few folders, or a folder of data_root_dir", _datasets,
    ),
    moved(f"{V}.per_device_batch_size", "trainer.batch_size"),
    moved(f"{V}.num_workers", "datasets.num_workers"),
    converted(f"{V}.CoT_prompt", "framework.vlm.cot_prompt, framework.vlm.max_text_tokens", "", _cot),
    converted(f"{V}.obs_image_size", "framework.transforms", "resize; 224 x 224 unless set", _piped),
    converted(
        f"{V}.include_state", "framework.transforms",
        "false: drop_state; true: a vector, or state_as_text for QwenPI_v3 and QwenOFT", _piped,
    ),
    converted(f"{V}.action_mode", "framework.transforms", "delta, rel: relative_actions", _mode),
    converted(f"{V}.action_mode_apply_keys", "framework.transforms", "groups", _piped),
    converted(f"{V}.action_mode_state_map.*", "framework.transforms", "groups", _piped),
    dropped(f"{V}.action_type", "StarVLA never reads it; action_mode decides"),
    dropped(f"{V}.load_all_data_for_training", "StarVLA never reads it"),
    dropped(f"{V}.default_image_resolution", "StarVLA never reads it"),
    dropped(f"{V}.CoT_answer", "StarVLA never reads it"),
    dropped(f"{V}.image_size", "StarVLA never reads it; obs_image_size decides"),
    dropped(f"{V}.obs", "StarVLA never reads it; cameras of the data set are datasets.train.0.cameras"),
    dropped(f"{V}.video_backend", DECODING),
    dropped(f"{V}.pin_memory", "always where there is a GPU"),
    dropped(f"{V}.persistent_workers", "always"),
    dropped(f"{V}.prefetch_factor", "torch's own"),
    only(
        f"{V}.sequential_step_sampling", (False, None), "every epoch is a permutation",
        "samples are drawn in a fresh permutation an epoch",
    ),
    only(f"{V}.delete_pause_frame", (False, None), "all frames", "remove pauses when writing the data"),
    only(
        f"{V}.balance_dataset_weights", (False, None), "data sets weigh as they are long",
        "samples of all data sets are drawn alike",
    ),
    only(
        f"{V}.balance_trajectory_weights", (False, None), "episodes weigh as they are long",
        "samples of all episodes are drawn alike",
    ),
)  # fmt: skip
