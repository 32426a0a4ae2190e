"""An imported pi0 of lerobot goes on training on another robot's demonstrations, as docs/lerobot.md says."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from vla_core.policy import VLAPolicy
from vla_core.weights import load_weights
from vla_train.cli import main
from vla_vlm.paligemma.shapes import shipped_tokenizer

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "packages" / "vla-train" / "tests" / "import_lerobot" / "golden"
ROBOT = {
    "embodiment": "tiny",
    "control_hz": 10,
    "action": [{"name": "move", "dim": 3, "unit": "m", "representation": "absolute"}],
    "state": [{"name": "place", "dim": 2, "unit": "m", "representation": "absolute"}],
}


def test_an_imported_pi05_goes_on_training(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    shipped_tokenizer().save(str(base / "tokenizer.json"))
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (base / "config.json").write_text((GOLDEN / "paligemma.json").read_text())
    robot, data = tmp_path / "robot.yaml", tmp_path / "data.yaml"
    robot.write_text(yaml.safe_dump(ROBOT))
    source = {"name": "lerobot", "path": str(ROOT / "examples" / "data" / "metaworld_faucet")}
    run = {
        "trainer": {"max_steps": 2, "batch_size": 2, "val_samples": 4},
        "trackers": [],
        "run_root_dir": str(tmp_path),
        "run_id": "run",
    }
    data.write_text(yaml.safe_dump({"datasets": {"train": [source], "num_workers": 0}, "seed": 0, **run}))
    words = ["--robot", str(robot), "--base_vlm", str(base)]
    assert main(["import-lerobot", str(GOLDEN / "pi05"), str(out), *words]) == 0
    config = ["--config", str(out / "config.yaml"), str(data)]
    assert main([*config, f"trainer.pretrained_checkpoint={out}"]) == 0
    trained = tmp_path / "run" / "checkpoints" / "steps_2"
    policy = VLAPolicy.from_pretrained(trained)
    assert policy.noise_shape == (4, 6)
    (spec,) = policy.specs.values()
    assert spec.action.dim == 4  # the data set's, not the source's
    before, after = (load_weights(path / "model.safetensors") for path in (out, trained))
    moved = [name for name in before if not torch.equal(before[name].float(), after[name].float())]
    assert 0 < len(moved) < len(before)  # two small steps from the imported weights
    for name in before:
        torch.testing.assert_close(after[name].float(), before[name].float(), atol=5e-3, rtol=0)
