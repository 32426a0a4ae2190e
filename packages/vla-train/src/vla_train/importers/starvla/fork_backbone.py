"""The backbone of a run of the MapAnythingLlava3D fork: LLaVA-3D's language model and a SigLIP tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_core.errors import UserError

from vla_train.importers.common.places import find_model
from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.run_files import StarVLARun

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEY = "framework.mapanything_llava3d.base_vlm"
MERGED = "mapanything_llava3d"
"""``model_type`` of the directory that the fork starts a run from."""
LLAVA = "pass --base_vlm DIR, the LLaVA-3D that the run was trained from"
SIGLIP = "pass --vision_weights DIR, the SigLIP that the run was trained from"
PATCH = 14
"""The fork counts image tokens by patches of this size, whatever the tower's."""
DROPOUT = ("prefix_image_dropout_prob", "prefix_lang_dropout_prob")


def find_fork_backbone(run: StarVLARun, base_vlm: str | None, vision_weights: str | None) -> Backbone:
    """Read LLaVA-3D's directory and SigLIP's; a merged directory of the fork names both.

    Raises:
        UserError: one cannot be found, or is not what the fork's code can have run.
    """
    from vla_vlm.common.weights import read_json
    from vla_vlm.llava3d import Llava3DConfig
    from vla_vlm.llava3d.loading import read_checkpoint, read_tokenizer

    source = base_vlm or str(run.get(KEY) or "")
    where = "--base_vlm" if base_vlm else f"{run.config_file}: {KEY}"
    if not source:
        raise UserError(f"{where}: missing; pass --base_vlm DIR, the LLaVA-3D that the run was trained from")
    near = None if base_vlm else run.directory
    source = find_model(source, where, LLAVA, near)
    published = read_json(source, "config.json", where)
    options: dict[str, Any] = {}
    if published.get("model_type") == MERGED:
        options = {key: float(published[key]) for key in DROPOUT if published.get(key)}
        source = str(published.get("language_model_name_or_path") or "")
        vision_weights = vision_weights or published.get("vision_model_name_or_path")
        if not source:
            raise UserError(
                f"{where}: its config.json has no language_model_name_or_path; pass the LLaVA-3D that the "
                "run was trained from as --base_vlm, and its SigLIP as --vision_weights"
            )
        source = find_model(source, f"{where}: language_model_name_or_path", LLAVA, run.directory)
    if vision_weights is not None:
        vision_weights = find_model(vision_weights, "--vision_weights", SIGLIP, run.directory)
    options |= {"vision_weights": vision_weights, "projector": "linear"}
    # Shapes alone are read: the weights are the run's.
    config = Llava3DConfig(base_vlm=source, init="random", **options)
    shapes = read_checkpoint(config).shapes
    tower, text = shapes.vision, shapes.text
    if tower.patch_size != PATCH:
        raise UserError(
            f"--vision_weights: patches of {tower.patch_size} pixels; the fork counts image tokens by "
            f"patches of {PATCH}, and leaves the images out where numbers differ: it cannot be imported"
        )
    if tower.hidden_size == text.hidden_size:
        raise UserError(
            f"--vision_weights: a tower as wide as the language model ({text.hidden_size}), for which the "
            "fork leaves out the projector, cannot be imported"
        )
    _check_start(read_tokenizer(config, text.vocab_size), source)
    return Backbone("llava3d", source, PATCH, 0, 2**62, side=tower.image_size, options=options)


def _check_start(tokens: Tokenizer, source: str) -> None:
    """The prompt here begins with ``<s>`` where there is one; so must the tokenizer's own texts."""
    plain, whole = (tokens.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    start = tokens.token_to_id("<s>")
    if whole != ([] if start is None else [start]) + plain:
        raise UserError(
            f"--base_vlm {source}: its tokenizer writes {whole} for 'a' (without special tokens {plain}), "
            "and only prompts that begin with '<s>', where there is one, can be imported; give the "
            "directory of the LLaVA-3D that the run was trained from, with its tokenizer.json"
        )
