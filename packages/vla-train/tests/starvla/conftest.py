"""StarVLA runs on disk, from the goldens (see golden/README.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import AddedToken
from vla_core.types import Observation, Sample
from vla_vlm.common import tokenizer

GOLDEN = Path(__file__).parent / "golden"
ACTION_TOKENS = 256
INSTRUCTIONS = ("turn the faucet handle to the left", "open the drawer")
STATISTICS = {
    # What maps every value to itself: the goldens were made from normalised numbers.
    name: {"mean": [0.0] * d, "std": [1.0] * d, "min": [-1.0] * d, "max": [1.0] * d,
           "q01": [-1.0] * d, "q99": [1.0] * d}
    for name, d in (("action", 3), ("state", 2))
}  # fmt: skip
ROBOT = {
    "embodiment": "tiny",
    "control_hz": 10,
    "cameras": [{"name": "front", "height": 56, "width": 56}, {"name": "wrist", "height": 56, "width": 56}],
    "action": [
        {"name": "move", "dim": 3, "normalize": "q99", "unit": "m", "representation": "delta"},
    ],
    "state": [
        {"name": "place", "dim": 2, "normalize": "q99", "unit": "m", "representation": "absolute"},
    ],
}

TRAINING = {
    "run_id": "starvla",
    "run_root_dir": "playground/Checkpoints",
    "seed": 42,
    "wandb_project": "x",
    "is_debug": False,
    "version_id": "0.21",
    "framework": {
        "name": "QwenGR00T",
        "qwenvl": {
            "base_vlm": "playground/Qwen3-VL-4B-Instruct",
            "attn_implementation": "flash_attention_2",
            "vl_hidden_dim": 2048,
        },
        "action_model": {
            "action_model_type": "DiT-L",
            "hidden_size": 512,
            "action_dim": 7,
            "future_action_window_size": 7,
            "num_target_vision_tokens": 16,
            "noise_beta_beta": 1.0,
            "diffusion_model_cfg": {"dropout": 0.1, "num_layers": 12, "output_dim": 768},
        },
    },
    "datasets": {
        "vlm_data": {"dataset_use": "a,b"},
        "vla_data": {
            "dataset_py": "lerobot_datasets",
            "data_root_dir": "data/libero",
            "data_mix": "libero_goal",
            "CoT_prompt": "Your task is {instruction}.",
            "per_device_batch_size": 3,
            "obs_image_size": [320, 256],
        },
    },
    "trainer": {
        "max_train_steps": 100,
        "num_warmup_steps": 5,
        "learning_rate": {"base": "2.5e-05", "qwen_vl_interface": 1.0e-05, "action_model": 1.0e-04},
        "lr_scheduler_type": "cosine_with_min_lr",
        "scheduler_specific_kwargs": {"min_lr": "1.0e-06"},
        "freeze_modules": "qwen_vl_interface.model.model.visual, action_model",
        "gradient_clipping": 0.5,
        "weight_decay": 0.3,
        "optimizer": {"name": "AdamW", "betas": [0.9, 0.95], "eps": "1e-08", "weight_decay": 0.01},
    },
}
"""A training YAML of StarVLA."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def starvla_run(tmp_path: Path) -> Callable[..., Golden]:
    """``starvla_run(case)``: the run of a golden case, see :func:`make_run`."""
    return lambda case, folder=tmp_path, **options: make_run(folder, case, **options)


@pytest.fixture
def starvla_golden() -> Path:
    return GOLDEN


@pytest.fixture
def golden_observations() -> Callable[[bool], list[Observation]]:
    return observations


@pytest.fixture
def golden_samples() -> Callable[[bool], list[Sample]]:
    return samples


@pytest.fixture
def golden_weights() -> Callable[[str], dict[str, torch.Tensor]]:
    return weights


@pytest.fixture
def robot_file(tmp_path: Path) -> Callable[..., Path]:
    """``robot_file(**changes)``: a robot file with these keys changed."""
    return lambda **changes: write_robot(tmp_path / "changed.yaml", **changes)


@dataclass(frozen=True)
class Golden:
    """A run, and what StarVLA computed with it."""

    run: Path
    base_vlm: Path
    robot: Path
    expected: dict[str, torch.Tensor]

    def words(self, out: Path) -> list[str]:
        """Arguments of ``vla-train import-starvla`` but for a framework's own."""
        return [str(self.run), str(out), "--robot", str(self.robot), "--base_vlm", str(self.base_vlm)]


def base_vlm(folder: Path, case: str) -> Path:
    """The base VLM's directory, without weights: those are in the run."""
    folder.mkdir(parents=True)
    tokens = tokenizer.shipped()
    tokens.add_tokens([AddedToken("🔍", normalized=False)])
    if case == "QwenFast":
        words = [f"<robot_action_{i}>" for i in range(ACTION_TOKENS)]
        tokens.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in words])
    tokens.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy((GOLDEN / case).parent / name, folder / name)
    if case == "QwenFast":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["vocab_size"] += ACTION_TOKENS
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def weights(case: str) -> dict[str, torch.Tensor]:
    """The whole state dict under StarVLA's names, fp32."""
    head = load_file(GOLDEN / f"{'QwenPI' if case == 'QwenPI_cross' else case}.safetensors")
    vlm = load_file((GOLDEN / case).parent / "vlm.safetensors")
    state = {f"qwen_vl_interface.model.{k}": v.float() for k, v in vlm.items()}
    table = "qwen_vl_interface.model.model.language_model.embed_tokens.weight"
    if case == "QwenFast":
        state[table] = torch.cat([state[table], head.pop("weights/action_rows").float()])
    state["qwen_vl_interface.model.lm_head.weight"] = state[table]
    for name, value in head.items():
        if name.startswith("weights/"):
            state[name.removeprefix("weights/")] = value.float()
    return state


def write_robot(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**ROBOT, **changes}))
    return path


def make_run(folder: Path, case: str, state: dict[str, torch.Tensor] | None = None) -> Golden:
    """The run of ``case`` below ``folder``, laid out as StarVLA does."""
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(GOLDEN / f"{case}.yaml", run / "config.yaml")
    (run / "dataset_statistics.json").write_text(json.dumps({"tiny": {**STATISTICS, "num_transitions": 9}}))
    torch.save(weights(case) if state is None else state, run / "checkpoints" / "steps_20_pytorch_model.pt")
    robot = write_robot(folder / "robot.yaml")
    return Golden(run, base_vlm(folder / "base", case), robot, load_file(GOLDEN / f"{case}.safetensors"))


def observations(with_state: bool) -> list[Observation]:
    """The two rows of the goldens."""
    inputs = load_file(GOLDEN / "inputs.safetensors")
    return [
        Observation(
            {name: inputs["images"][b, v].numpy() for v, name in enumerate(("front", "wrist"))},
            INSTRUCTIONS[b],
            state=inputs["state"][b].numpy() if with_state else None,
            embodiment="tiny",
        )
        for b in range(2)
    ]


def samples(with_state: bool) -> list[Sample]:
    actions = load_file(GOLDEN / "inputs.safetensors")["actions"].numpy()
    return [
        Sample(o, actions[b], np.ones(actions[b].shape, np.bool_))
        for b, o in enumerate(observations(with_state))
    ]


@pytest.fixture
def theirs(tmp_path: Path) -> Callable[..., Path]:
    """``theirs(a__b=1)``: a StarVLA training YAML with ``a.b`` changed."""

    def write(**changes: Any) -> Path:
        data = yaml.safe_load(yaml.safe_dump(TRAINING))
        for key, value in changes.items():
            *path, last = key.split("__")
            node = data
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        file = tmp_path / "starvla.yaml"
        file.write_text(yaml.safe_dump(data))
        return file

    return write
