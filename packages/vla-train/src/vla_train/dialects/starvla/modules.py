"""StarVLA's module paths in ours, for learning rates and freezing."""

from __future__ import annotations

from vla_train.dialects.starvla.rules import Given, Outcome

PATHS = (
    ("qwen_vl_interface.model.model", "vlm.model"),
    ("qwen_vl_interface.model.language_model", "vlm.model.language_model"),
    ("qwen_vl_interface.model.visual", "vlm.model.visual"),
    ("qwen_vl_interface.model", "vlm"),
    ("qwen_vl_interface", "vlm"),
    ("mapanythingllava3d_vlm_interface.model.vision_projector", "vlm.model.mm_projector"),
    ("mapanythingllava3d_vlm_interface.model.geometric_model", "geometry"),
    ("mapanythingllava3d_vlm_interface.model.geometric_projector", "fusion.project"),
    ("mapanythingllava3d_vlm_interface.model.fusion_projector", "fusion.out"),
    ("mapanythingllava3d_vlm_interface.model", "vlm.model"),
    ("mapanythingllava3d_vlm_interface", "vlm"),
)
"""StarVLA's path -> ours; what is below keeps its name."""

HEAD = "action_model"


def is_theirs(path: str) -> bool:
    """Whether a module path begins with one of StarVLA's modules."""
    return path.split(".")[0] in {HEAD, "project_layers", *(theirs.split(".")[0] for theirs, _ in PATHS)}


def module(path: str, given: Given) -> str:
    """Our path; one that is not StarVLA's stays."""
    if path == HEAD:
        return "head"
    for theirs, ours in PATHS:
        if path == theirs or path.startswith(theirs + "."):
            return ours + path.removeprefix(theirs)
    if is_theirs(path):
        given.refuse(
            f"'{path}' has no single counterpart; name a module of this project, e.g. head or head.blocks "
            "(python -m vla_train.smoke NAME shows the parts)"
        )
    return path


def module_list(given: Given, ours: str) -> Outcome:
    """``"a, b"`` (or a list, or nothing) -> our list of paths."""
    value = given.value
    if value in (None, "", True, False):
        return Outcome({ours: []})
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
    return Outcome({ours: [module(str(name), given) for name in names if name]})


def rate(given: Given) -> Outcome:
    """``trainer.learning_rate.<module>``."""
    path = given.key.removeprefix("trainer.learning_rate.")
    return Outcome({f"trainer.learning_rate.{module(path, given)}": given.number()})
