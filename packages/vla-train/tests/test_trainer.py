"""The loop: learns, validates, checkpoints, resumes exactly."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from vla_core.errors import ConfigError, UserError
from vla_core.model import VLAModel
from vla_core.policy import VLAPolicy
from vla_train.checkpointing.resume import run_directory
from vla_train.composition import compose
from vla_train.optimizer.ema import EMA
from vla_train.presets import load_run_tree
from vla_train.trainer import Outcome, Trainer


def trainer_of(config: Path, *overrides: str) -> Trainer:
    composed = compose(load_run_tree([config], list(overrides)))
    run = composed.config
    run_dir = run_directory(run.run_root_dir, run.run_id or "run", run.trainer.resume)
    return Trainer(composed, run_dir, Console(quiet=True), "test")


def train(config: Path, *overrides: str) -> tuple[Outcome, Path]:
    trainer = trainer_of(config, *overrides)
    trainer.describe()
    return trainer.train(), trainer.run_dir


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def curves(run_dir: Path) -> list[dict[str, float]]:
    """The logged lines without times."""
    return [
        {key: value for key, value in line.items() if key.startswith(("step", "loss", "val", "lr"))}
        for line in lines(run_dir)
    ]


def test_every_part_trains_whatever_mode_it_was_left_in(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, modes = VLAModel.forward, []

    def seen(self: VLAModel, *args: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            modes.append(all(module.training for module in self.modules()))
        return forward(self, *args, **options)

    trainer = trainer_of(toy_config, "trainer.max_steps=6", "trainer.val_every=2")
    trainer.describe()
    next(trainer.model.head.children()).eval()
    monkeypatch.setattr(VLAModel, "forward", seen)
    outcome = trainer.train()
    assert modes == [True] * 6
    assert trainer.validation
    assert trainer.validation.names == set(outcome.metrics)


def test_an_error_that_is_kept_leaves_no_worker_behind(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        assert multiprocessing.active_children()
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = trainer_of(toy_config, "datasets.num_workers=1")
    trainer.describe()
    monkeypatch.setattr(VLAModel, "forward", fails)
    with pytest.raises(UserError, match="out of GPU memory in step 1"):
        trainer.train()
    assert not multiprocessing.active_children()


def test_learns_and_leaves_a_whole_run(toy_config: Path) -> None:
    outcome, run_dir = train(toy_config, "trainer.max_steps=150", "trainer.val_every=50")
    assert outcome.metrics["val/action_mae"] < 0.7 * outcome.metrics["val/mean_action_mae"]
    assert set(outcome.metrics) >= {"val/loss", "val/mae/level_0", "val/mae/level_1"}
    whole = [value for key, value in outcome.metrics.items() if key.startswith("val/mae/")]
    by_group = [value for key, value in outcome.metrics.items() if key.startswith("val/group_mae/")]
    assert sum(by_group) / len(by_group) == pytest.approx(sum(whole) / len(whole))
    assert any(key.startswith("val/group_mae_at/") for key in outcome.metrics)
    policy = VLAPolicy.from_pretrained(outcome.checkpoint)
    assert policy.framework == "QwenPI"
    logged = lines(run_dir)
    assert logged[0]["step"] == 2
    assert {"loss", "loss/action_l1", "lr", "samples_per_s", "data_wait", "grad_norm"} <= set(logged[0])
    assert logged[-1]["step"] == 150
    assert (run_dir / "predictions.npz").exists()
    assert list((run_dir / "tensorboard").iterdir())
    info = json.loads((run_dir / "run.json").read_text())
    assert info["data"]["episodes_train"] + info["data"]["episodes_val"] == 6


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_equals_the_uninterrupted_run(toy_config: Path, ema: float, accumulate: int) -> None:
    common = (f"trainer.ema_decay={ema}", f"trainer.gradient_accumulation_steps={accumulate}")
    whole, whole_dir = train(toy_config, *common, "run_id=whole")
    # Stops at step 4 but with the schedule of the whole run: a crash, not a shorter run.
    with pytest.MonkeyPatch.context() as patch:
        saves = []
        original = Trainer._save

        def save_and_crash(self: Trainer, step: int) -> Path:
            saves.append(original(self, step))
            raise KeyboardInterrupt

        patch.setattr(Trainer, "_save", save_and_crash)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config, *common, "run_id=parts", "trainer.save_every=4")
    assert saves[0].name == "steps_4"
    torch.manual_seed(123)  # whatever else the process did must not matter
    parts, parts_dir = train(toy_config, *common, "run_id=parts", "trainer.resume=true")
    a, b = (load_file(o.checkpoint / "model.safetensors") for o in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert curves(whole_dir) == curves(parts_dir)


def test_workers_change_nothing(toy_config: Path) -> None:
    a, _ = train(toy_config, "run_id=a")
    b, _ = train(toy_config, "run_id=b", "datasets.num_workers=2", "datasets.ram_cache=true")
    x, y = (load_file(o.checkpoint / "model.safetensors") for o in (a, b))
    assert all(torch.equal(x[k], y[k]) for k in x)


def test_frozen_modules_stay_and_checkpoints_are_limited(toy_config: Path) -> None:
    outcome, run_dir = train(
        toy_config, "trainer.freeze_modules=[vlm]", "trainer.save_every=2", "trainer.keep_checkpoints=2"
    )
    kept = sorted(p.name for p in (run_dir / "checkpoints").iterdir())
    assert kept == ["steps_6", "steps_8"]
    assert [p.name for p in (run_dir / "resume").iterdir()] == ["steps_8"]
    start = compose(load_run_tree([toy_config])).policy.model.state_dict()
    end = load_file(outcome.checkpoint / "model.safetensors")
    for name, value in end.items():
        assert torch.equal(value, start[name]) == name.startswith("vlm.")


def test_starts_from_a_checkpoint(toy_config: Path) -> None:
    outcome, _ = train(toy_config)
    path = f"trainer.pretrained_checkpoint={outcome.checkpoint}"
    trained = load_file(outcome.checkpoint / "model.safetensors")
    policy = compose(load_run_tree([toy_config], [path, "trainer.reload_modules=[head]", "seed=5"])).policy
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, trained[name]) == name.startswith("head.")
    with pytest.raises(ConfigError, match="no module 'hat'"):
        compose(load_run_tree([toy_config], [path, "trainer.reload_modules=[hat]"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.freeze_modules=[vlmm]", "did you mean 'vlm'"),
        ("trainer.learning_rate.hed=1e-3", "did you mean 'head'"),
        ("trainer.loss_weights.action_l2=2", "did you mean 'action_l1'"),
        ("trainer.freeze_modules=[vlm,head]", "nothing to train"),
        pytest.param(
            "trainer.device=cuda",
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_names_of_modules_and_terms_are_checked(toy_config: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy_config, override)


def test_a_run_is_never_overwritten(toy_config: Path) -> None:
    with pytest.raises(UserError, match="no resume state"):
        train(toy_config, "trainer.resume=true")
    train(toy_config)
    with pytest.raises(UserError, match="holds a run already"):
        train(toy_config)


def test_padding_and_weights_enter_the_loss(toy_config: Path) -> None:
    one, one_dir = train(toy_config, "run_id=one", "trainer.clip_norm=0")
    two, two_dir = train(toy_config, "run_id=two", "trainer.clip_norm=0", "trainer.loss_weights.action_l1=2")
    assert lines(two_dir)[0]["loss"] > 1.5 * lines(one_dir)[0]["loss"]
    assert one.metrics.keys() == two.metrics.keys()


def test_averages_are_fp32_and_follow_the_weights() -> None:
    model = torch.nn.Linear(2, 1, bias=False).bfloat16()
    torch.nn.init.ones_(model.weight)
    ema = EMA(list(model.parameters()), 0.999)
    ema.count = 10**6
    with torch.no_grad():
        model.weight.mul_(2)
    for _ in range(100):
        ema.update()
    # bf16 would stay at 1: a step of 0.001 is below its resolution there.
    assert ema.average[0].dtype == torch.float32
    torch.testing.assert_close(ema.average[0], torch.full((1, 2), 2 - 0.999**100))
    with ema.applied():
        assert model.weight.dtype == torch.bfloat16
        assert model.weight[0, 0] < 1.2
    assert model.weight[0, 0] == 2
