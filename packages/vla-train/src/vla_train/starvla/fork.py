"""Runs of StarVLA's MapAnythingLlava3D fork: recognised, and refused with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable

from vla_core.errors import UserError

from vla_train.starvla.run_files import StarVLARun

NAME = "mapanythingllava3d"
"""How the fork's frameworks (``MapAnythingLlava3DPI``) and its tensors begin, in lower case."""

WORDS = (
    "framework.name=MapAnythingLlava3DPI",
    "framework.fusion.name=mean_pool",
    "framework.vlm.base_vlm=LLAVA3D_DIR",
    "framework.vlm.vision_weights=SIGLIP_DIR",
    "framework.geometry.weights=MAPANYTHING_DIR",
)
"""The same composition here, from the public weights that such a run started from."""


def refuse_fork(run: StarVLARun, tensors: Iterable[str] = ()) -> None:
    """Stop if the config's framework or the names of the ``tensors`` are the fork's.

    Its action head has the layerwise head's names but another read-out, so that these weights would load
    into ours and mean something else.

    Raises:
        UserError: what the run is, and the command that trains the same composition.
    """
    names = (run.get("framework.name"), run.get("framework.framework_py"))
    if any(str(name).lower().startswith(NAME) for name in names):
        where = f"{run.config_file}: framework"
    elif any(name.startswith(NAME) for name in tensors):
        where = f"{run.weights}: the weights"
    else:
        return
    command = " ".join(("vla-train --config", str(run.config_file), *WORDS))
    raise UserError(
        f"{where} of StarVLA's MapAnythingLlava3D fork cannot be imported: its head and its geometry input "
        "compute something else than the parts here (docs/starvla.md, MapAnythingLlava3D); train the same "
        f"composition from the weights it started from: {command} "
        "datasets.train='[{name: lerobot, path: DIR}]'"
    )
