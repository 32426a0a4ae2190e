"""The projector from the vision tower to the language model, and whether a checkpoint's own fits."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from torch import nn

from vla_vlm.llava3d.config import Llava3DConfig
from vla_vlm.llava3d.shapes import new_projector

_MLP = re.compile(r"mlp(\d+)x_gelu")


def build_projector(kind: str, width: int, hidden_size: int, init_std: float) -> nn.Module:
    """Width C -> H, with LLaVA's names: a linear layer, or n of them with GELU between (``mlp<n>x_gelu``)."""
    found = _MLP.fullmatch(kind)
    layers: list[nn.Module] = [nn.Linear(width, hidden_size)]
    for _ in range(1, int(found[1]) if found else 1):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=init_std)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers) if found else layers[0]


def choose_projector(config: Llava3DConfig, published: dict[str, Any], vision: Any) -> tuple[str, str | None]:
    """The projector's type, and why it is new; None: it is the checkpoint's, whose weights are to be loaded.

    Args:
        published: the checkpoint's ``config.json``.
        vision: config of the tower that is built.
    """
    reason = _misfit(config, published, vision)
    return (new_projector(config), reason) if reason else (published["mm_projector_type"], None)


def _misfit(config: Llava3DConfig, published: dict[str, Any], vision: Any) -> str | None:
    trained = published.get("mm_vision_tower")
    if not trained:
        return f"'{config.base_vlm}' has none"
    kind = published.get("mm_projector_type", "linear")
    if kind != "linear" and not _MLP.fullmatch(kind):
        return f"the checkpoint's is of type '{kind}', which isn't built"
    if config.projector not in ("auto", kind):
        return f"the checkpoint's is '{kind}', the config asks for '{config.projector}'"
    reads = (published.get("mm_vision_select_layer"), published.get("mm_vision_select_feature", "patch"))
    same = (
        config.vision_tower == "clip"
        and "clip" in str(trained).lower()
        and reads == (-2, "patch")
        and published.get("mm_hidden_size") == vision.hidden_size
        and _sizes_of(str(trained)) in (None, (vision.patch_size, vision.image_size))
    )
    if same:
        return None
    patch, side = vision.patch_size, vision.image_size
    width = published.get("mm_hidden_size")
    return (
        f"the checkpoint's was trained on '{trained}' ({width} wide, layer {reads[0]}), "
        f"not on this {config.vision_tower} ({vision.hidden_size} wide, patch {patch}, {side} pixels)"
    )


def _sizes_of(tower: str) -> tuple[int, int] | None:
    """Patch and image size in a name such as ``openai/clip-vit-large-patch14-336``; 224 is left out there."""
    found = re.search(r"patch(\d+)(?:-(\d+))?$", PurePosixPath(tower).name.lower())
    return (int(found[1]), int(found[2] or 224)) if found else None
