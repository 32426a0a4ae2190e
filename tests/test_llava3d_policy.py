"""LLaVA-3D in whole policies: published directories become a checkpoint of ours, and what users mistake."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import SiglipVisionConfig, SiglipVisionModel
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.errors import UserError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_spec
from vla_train._smoke_sizes import TINY
from vla_train.cli import main
from vla_train.presets import load_preset
from vla_vlm import Llava3D, Llava3DConfig, Llava3DTinyConfig

SIDE = 56
SPEC = make_spec(n_cameras=2, height=SIDE, width=SIDE, horizon=16)
SMALL = {"hidden_size": 32, "n_layers": 3, "n_heads": 2, "intermediate_size": 32, "vision_hidden": 24}
SMALL |= {"vision_depth": 1, "vision_heads": 2, "vision_intermediate": 32}


@pytest.fixture
def published(tmp_path: Path) -> dict[str, str]:
    """``base_vlm`` and ``vision_weights``: small directories with the layout of the published ones."""
    torch.manual_seed(0)
    made = Llava3D.build(Llava3DConfig(tiny=Llava3DTinyConfig(**SMALL)), 1, (SIDE, SIDE))
    language, tower = tmp_path / "llava", tmp_path / "siglip"
    language.mkdir()
    text = made.language_model.config
    config = {
        "model_type": "llava_llama", "vocab_size": text.vocab_size, "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
    }  # fmt: skip
    (language / "config.json").write_text(json.dumps(config))
    weights = {f"model.{key}": value for key, value in made.language_model.state_dict().items()}
    weights["model.mm_projector.0.weight"] = torch.zeros(32, 1024)
    weights["lm_head.weight"] = torch.zeros(text.vocab_size, 32)
    save_file(weights, language / "model.safetensors")
    made.tokenizer.save(str(language / "tokenizer.json"))
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE,
        patch_size=14,
    )  # fmt: skip
    SiglipVisionModel(vision).save_pretrained(tower)
    return {"base_vlm": str(language), "vision_weights": str(tower)}


def build(vlm: dict[str, Any], side: int = SIDE, **parts: Any) -> VLAPolicy:
    """The preset with a small geometry encoder and head, and ``vlm`` over its backbone."""
    framework = load_preset("MapAnythingLlava3DPI")
    framework["vlm"] |= vlm
    framework["geometry"] |= {"size": "tiny", "weights": None}
    framework["head"] |= {"n_heads": 2, "n_future_tokens": 2, "state_hidden": 8, "decoder_hidden": 8}
    framework["transforms"][0] |= {"height": side, "width": side}
    torch.manual_seed(0)
    return build_policy(
        build_config(FrameworkConfig, framework | parts, "framework"), {SPEC.embodiment: SPEC}
    )


def one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_from_published_directories_to_a_checkpoint_that_needs_none(
    published: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = build(published).eval()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("vla_vlm")]
    assert len(said) == 1
    assert "the projector (model.mm_projector, linear) is new and has to be trained" in said[0]
    # Both encoders have patches of 14, so that the grids coincide.
    assert policy.model.vlm.dims.grid == (4, 4)
    assert policy.model.head.request("sample").layers == (1, 2, 3), "min(16, layers) blocks"
    observations = [make_observation(SPEC, seed) for seed in (0, 1)]
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    chunks = policy.act(observations, [0, 1])
    saved = policy.save(tmp_path / "steps_1", step=1)
    for folder in published.values():
        shutil.rmtree(folder)
    again = VLAPolicy.from_pretrained(saved)
    for ours, theirs in zip(chunks, again.act(observations, [0, 1]), strict=True):
        assert np.array_equal(ours.actions, theirs.actions)


def test_geometry_and_vision_have_one_grid_at_full_size() -> None:
    preset = load_preset("MapAnythingLlava3DPI")
    assert preset["transforms"][0] == {"name": "resize", "height": 224, "width": 224}
    with torch.device("meta"):
        vlm = Llava3D.build(Llava3DConfig(base_vlm="7b"), 2, (224, 224))
    assert vlm.dims.grid == (16, 16)


def test_a_wrong_number_of_views(published: dict[str, str]) -> None:
    policy = build(published).eval()
    seen = make_observation(SPEC)
    one = replace(seen, images={"camera_1": seen.images["camera_1"]})
    one_line(lambda: policy.act([one], [0]), "camera 'camera_0' is missing; got")
    batch = policy.collate([seen])
    with pytest.raises(ValueError, match=r"images are \[1, 1, 3, 56, 56\], the model was built for \[B, 2,"):
        policy.model.vlm.embed_images(batch.images[:, :1], batch.view_mask[:, :1])


def test_a_size_that_is_not_the_towers(published: dict[str, str]) -> None:
    message = (
        r"image size 112x112 isn't the vision tower's 56x56; .*height: 56, width: 56\} into framework.transf"
    )
    one_line(lambda: build(published, side=112), message)


def test_a_checkpoint_of_another_size(published: dict[str, str], tmp_path: Path) -> None:
    config = Path(published["base_vlm"]) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 64}))
    one_line(
        lambda: build(published), r"base_vlm .*of another shape: .*model\.\S+ \[.*32.*\] instead of \[.*64"
    )
    saved = build({"base_vlm": "tiny", "tiny": SMALL}).save(tmp_path / "steps_1", step=1)
    changed = next(saved.rglob("config.json"))
    data = json.loads(changed.read_text())
    data["text_config"]["intermediate_size"] = 48
    changed.write_text(json.dumps(data))
    one_line(
        lambda: VLAPolicy.from_pretrained(saved),
        r"'vlm\.model\.language_model\.\S+' has shape .*, the model has",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["framework.vlm.base_vlm=7b", "framework.transforms.0.width=256"],
            "image size 224x256 isn't the vision",
        ),
        (["framework.vlm.decoder=gemma"], "framework.vlm.decoder"),
        (
            ["framework.vlm.base_vlm=tiny", "framework.transforms.0.height=100"],
            "must be square and a multiple of",
        ),
        (["framework.vlm.prompt=do it"], "prompt must have <image> once"),
    ],
)
def test_vla_train_says_it_in_one_line(
    words: list[str],
    message: str,
    quickstart: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run.yaml"
    tiny = {"size": "tiny", "weights": None}
    quickstart["framework"] = {"name": "MapAnythingLlava3DPI", "vlm": {"base_vlm": "tiny"}, "geometry": tiny}
    path.write_text(yaml.safe_dump(quickstart))
    assert main(["--config", str(path), *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vla-train: ")]
    assert len(said) == 1
    assert message in said[0]


def test_it_speaks_actions() -> None:
    """QwenFast's head on this backbone: answers are tokens of its vocabulary, too."""
    framework = load_preset("QwenFast")
    framework["vlm"] = {"name": "llava3d", "tiny": SMALL}
    framework["head"] |= {key: value for key, value in TINY["head"].items() if key in framework["head"]}
    framework["transforms"] = [{**s, "height": SIDE, "width": SIDE} if s["name"] == "resize" else s
                               for s in framework["transforms"]]  # fmt: skip
    spec = make_spec(n_cameras=2, height=SIDE, width=SIDE, horizon=framework["horizon"])
    torch.manual_seed(0)
    policy = build_policy(
        build_config(FrameworkConfig, framework, "framework"), {spec.embodiment: spec}
    ).eval()
    (chunk,) = policy.act([make_observation(spec, 0)], [0])
    assert chunk.actions.shape == (framework["horizon"], spec.action.dim)
    assert np.isfinite(chunk.actions).all()


def test_the_preset_documents_the_older_fusion() -> None:
    text = (Path(__file__).parents[1] / "packages/vla-train/src/vla_train/frameworks").joinpath(
        "MapAnythingLlava3DPI.yaml"
    )
    (node,) = re.findall(r"fusion: (\{name: \w+\})", text.read_text())
    policy = build({"base_vlm": "tiny", "tiny": SMALL}, fusion=yaml.safe_load(node))
    assert type(policy.model.fusion).__name__ == "MeanPool"
