"""What stops a run before it does harm: numbers, resumes, names, and mistakes found before the first step."""

from __future__ import annotations

import json
import math
import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_core.config import build_config
from vla_core.errors import UserError
from vla_train import composition, runs
from vla_train.cli import main
from vla_train.composition import compose
from vla_train.config import RunConfig
from vla_train.engine import Engine
from vla_train.engine.choose import check_launch
from vla_train.optimizer.masters import MasterAdamW
from vla_train.optimizer.optim import freeze, lr_factor
from vla_train.optimizer.precision import masters_of
from vla_train.presets import load_run_tree
from vla_train.testing import framework_tree
from vla_train.trainer import Trainer

SIMULATOR = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs Meta-World")


def call(config: Path, *words: str) -> int:
    return main(["--config", str(config), *words])


def fails(capsys: pytest.CaptureFixture[str], config: Path, *words: str) -> str:
    capsys.readouterr()
    assert call(config, *words) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    return err


def test_nothing_infinite_is_written(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.max_steps=40", "trainer.save_every=5", "trainer.log_every=20", "trainer.val_every=0",
             "trainer.warmup_steps=0", "trainer.learning_rate.base=1e30", "trainer.clip_norm=0")  # fmt: skip
    assert "not finite" in fails(capsys, toy_config, *words)
    run = toy_config.parent / "runs" / "toy"
    written = [*run.glob("checkpoints/*/model.safetensors"), *run.glob("resume/*/model.safetensors")]
    assert all(tensor.isfinite().all() for file in written for tensor in load_file(file).values())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in logged for value in line.values())


def test_the_logged_rate_is_that_of_the_step(toy_config: Path) -> None:
    assert call(toy_config, "trainer.log_every=1") == 0
    path = toy_config.parent / "runs" / "toy" / "metrics.jsonl"
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in logged if "lr" in line}
    factor = lr_factor(compose(load_run_tree([toy_config])).config.trainer)
    assert rates == {step: 0.01 * factor(step - 1) for step in range(1, 9)}


@pytest.mark.parametrize(
    ("word", "old", "new"),
    [
        ("seed=4", "0", "4"),
        ("datasets.val_fraction=0.4", "0.2", "0.4"),
        ("trainer.batch_size=2", "4", "2"),
        ("trainer.ema_decay=0.5", "0.0", "0.5"),
        ("framework.horizon=3", "4", "3"),
        ("framework.head.noise_scale=0.3", "0.1", "0.3"),
        ("framework.transforms=[]", "normalize", "[]"),
        ("trainer.freeze_modules=[vlm]", "[]", "vlm"),
    ],
)
def test_a_resumed_run_is_the_same_run(
    toy_config: Path, capsys: pytest.CaptureFixture[str], word: str, old: str, new: str
) -> None:
    assert call(toy_config, "trainer.max_steps=2") == 0
    run = toy_config.parent / "runs" / "toy"
    before = {name: (run / name).read_text() for name in ("config.yaml", "run.json", "metrics.jsonl")}
    line = fails(capsys, toy_config, "trainer.resume=true", word)
    assert old in line
    assert new in line
    assert before == {name: (run / name).read_text() for name in before}


def test_how_a_step_is_computed_may_change(toy_config: Path) -> None:
    """What a run is told to change when it ends, and its engine asked for by another way."""
    assert call(toy_config, "trainer.max_steps=2") == 0
    path = toy_config.parent / "runs" / "toy" / "config.yaml"
    node = yaml.safe_load(path.read_text())
    node["trainer"] |= {"sharding": "fsdp2", "gather_mb": 0, "prefetch": 2, "reshard": False, "bucket_mb": 5}
    node["trainer"] |= {"compile": "blocks", "activation_budget": 0.5}
    path.write_text(yaml.safe_dump(node))
    words = ("trainer.hang_timeout_s=30", "datasets.on_bad_sample=quarantine", "trainer.schedule=constant")
    assert call(toy_config, "trainer.resume=true", "trainer.max_steps=3", *words) == 0


@pytest.mark.parametrize("how", ["true", "auto"])
def test_a_run_that_goes_on_has_a_name(
    toy_config: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    line = fails(capsys, toy_config, "run_id=null", f"trainer.resume={how}")
    assert f"trainer.resume is {how}, so run_id must name the run" in line


def test_rates_of_a_resumed_run_are_the_new_ones(toy_config: Path) -> None:
    common = ("trainer.schedule=constant", "trainer.warmup_steps=0", "trainer.log_every=1")
    assert call(toy_config, *common, "trainer.max_steps=2", "trainer.resume=auto") == 0
    words = ("trainer.learning_rate.base=0.002", "trainer.max_steps=3", "trainer.resume=auto")
    assert call(toy_config, *common, *words) == 0
    path = toy_config.parent / "runs" / "toy" / "metrics.jsonl"
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["lr"] for line in logged if "lr" in line] == [0.01, 0.01, 0.002]


def test_head_assets_are_the_newest_by_step(toy_config: Path) -> None:
    config = compose(load_run_tree([toy_config], ["trainer.resume=true"])).config
    for step in (200, 1000, 1500):  # by name 1000 would be the first and 200 the last
        (toy_config.parent / f"runs/toy/checkpoints/steps_{step}/assets/head").mkdir(parents=True)
    found = composition._head_assets(config)
    assert found is not None
    assert found.parts[-3] == "steps_1500"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_in_the_data_is_one_line(
    toy_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    from vla_core.registry import load

    source = load("vla.sources", "toy")
    read = source.__getitem__

    def broken(self: Any, index: int) -> Any:
        if index == 17:
            raise UserError("episode 1, frame 7: cannot be read; record it again")
        return read(self, index)

    monkeypatch.setattr(source, "__getitem__", broken)
    line = fails(capsys, toy_config, "trainer.max_steps=40", f"datasets.num_workers={workers}")
    assert line == "vla-train: episode 1, frame 7: cannot be read; record it again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run_id=../../x"], "one folder"),
        (["trainer.learning_rate.base=-1"], ">= 0"),
        (["trainer.learning_rate.base=.nan"], "finite"),
        (["trainer.clip_norm=-1"], "'trainer.clip_norm': must be >= 0, got -1"),
        (["trainer.weight_decay=.nan"], "'trainer.weight_decay': must be a finite number >= 0, got nan"),
        (["trainer.eps=.inf"], "'trainer.eps': must be a finite number >= 0, got inf"),
        (["trainer.min_lr_ratio=-0.5"], "'trainer.min_lr_ratio': must be in [0, 1], got -0.5"),
        (["trainer.betas=[1.9, 0.5]"], "'trainer.betas.0': must be in [0, 1), got 1.9"),
        (["seed=-5"], "'seed': must be in [0, 4294967295], got -5"),
        pytest.param(
            ["trainer.evaluation.tasks=[faucet-opne]"], "did you mean 'faucet-open'", marks=SIMULATOR
        ),
        (["trainer.evaluation.env=metaword", "trainer.evaluation.tasks=[a]"], "did you mean 'metaworld'"),
        pytest.param(
            ["trainer.evaluation.tasks=[faucet-open]", "trainer.evaluation.env_options.imagesize=3"],
            "image_size",
            marks=SIMULATOR,
        ),
        pytest.param(
            ["trainer.evaluation={tasks: [faucet-open], env_options: {cameras: [topview], image_size: 48}}"],
            "the data has 'front', trainer.evaluation.env metaworld has 'topview'",
            marks=[SIMULATOR, pytest.mark.slow],
        ),
        (["trainer.freeze_modules=['vlm\\.nothing.*']"], "no module"),
        (["trainer.keep_statistics=true"], "pretrained_checkpoint is not"),
        (["trainer.resume=atuo"], "'auto'"),
        (
            ["trainer.keep_best=val/action_mae", "trainer.patience=2", "trainer.val_every=0"],
            "trainer.patience counts validations; set trainer.val_every",
        ),
    ],
)
def test_mistakes_are_found_before_the_first_step(
    toy_config: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in fails(capsys, toy_config, *words)
    assert not (toy_config.parent / "runs").exists()


def test_a_mistyped_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablat"]) == 2
    assert "did you mean 'ablate'" in capsys.readouterr().err


def test_a_launcher_that_started_fewer_processes() -> None:
    with pytest.raises(UserError, match="torchrun"):
        check_launch({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"})
    check_launch({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"})


def test_sharding_that_cannot_be_is_refused(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["--config", str(toy_config)]) == 2
    assert "set fsdp_version: 2" in capsys.readouterr().err
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert "torchrun --nproc_per_node N" in fails(capsys, toy_config)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert "torchrun --nproc_per_node N" in fails(capsys, toy_config, "trainer.sharding=fsdp2")


def test_weights_of_a_low_precision_have_masters(toy_config: Path) -> None:
    """Whatever made them so: the config of a part, or ``trainer.precision``."""
    composed = compose(load_run_tree([toy_config]))
    composed.model.vlm.to(torch.bfloat16)
    trainer = Trainer(composed, toy_config.parent / "run")
    assert isinstance(trainer.optimizer, MasterAdamW)
    assert masters_of(trainer.model, trainer.engine) == sum(
        p.numel() for p in composed.model.vlm.parameters()
    )


@pytest.mark.slow
def test_bf16_goes_on_where_it_stopped(toy_config: Path) -> None:
    """The masters are part of the state: with the weights alone, what rounding left out would be lost."""
    words = ("trainer.precision=bf16", "trainer.ema_decay=0.9", "trainer.schedule=constant")
    for name, more in (
        ("whole", ()),
        ("parts", ("trainer.max_steps=4",)),
        ("parts", ("trainer.resume=true",)),
    ):
        assert call(toy_config, *words, f"run_id={name}", *more) == 0
    runs = toy_config.parent / "runs"
    whole, parts = (load_file(runs / n / "checkpoints/steps_8/model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    assert {value.dtype for value in whole.values()} == {torch.bfloat16}
    state = torch.load(runs / "parts/resume/steps_8/optimizer.bin", weights_only=False)["state"]
    assert all(entry["exp_avg"].dtype == torch.float32 for entry in state.values())
    assert any(bool(entry["low"].any()) for entry in state.values())


def test_freezing_by_regex_and_what_no_loss_reaches(toy_config: Path) -> None:
    composed = compose(load_run_tree([toy_config], ["trainer.freeze_modules=['vlm\\.layers\\.0\\..*']"]))
    composed.model.head.register_parameter("spare", torch.nn.Parameter(torch.zeros(3)))
    trainer = Trainer(composed, toy_config.parent / "run")
    frozen = {name for name, p in composed.model.named_parameters() if not p.requires_grad}
    assert "head.spare" in trainer.unreached
    assert frozen == {n for n, _ in composed.model.named_parameters() if n.startswith("vlm.layers.0.")} | set(
        trainer.unreached
    )


@pytest.mark.parametrize("key", ["freeze_modules", "reload_modules"])
def test_a_list_of_modules_may_be_one_text(toy_config: Path, key: str) -> None:
    text = toy_config.read_text().replace("trainer:", f"trainer:\n  {key}: 'vlm, head'")
    toy_config.write_text(text)
    tree = load_run_tree([toy_config], ["trainer.pretrained_checkpoint=somewhere"])
    assert getattr(build_config(RunConfig, tree.data, "", tree).trainer, key) == ("vlm", "head")


def test_a_frozen_module_has_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
    with pytest.raises(UserError, match="'1' has no parameters"):
        freeze(model, ["1"])
    freeze(model, ["0"])
    assert not any(p.requires_grad for p in model.parameters())


def test_a_signal_saves_and_leaves(
    toy_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def signalled(self: Trainer, number: int, *rest: Any) -> Any:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", signalled)
    assert call(toy_config) == 75
    assert "step 3" in capsys.readouterr().err
    monkeypatch.undo()
    assert call(toy_config, "run_id=whole") == 0
    runs = toy_config.parent / "runs"
    assert (runs / "toy" / "checkpoints" / "steps_3").is_dir()
    assert call(toy_config, "trainer.resume=true") == 0
    a, b = (load_file(runs / n / "checkpoints" / "steps_8" / "model.safetensors") for n in ("whole", "toy"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_dry_run_knows_the_terms_of_the_loss(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(toy_config, "--dry_run", "trainer.loss_weights.action_l2=2") == 2
    assert (
        "trainer.loss_weights: no loss term 'action_l2' (did you mean 'action_l1'" in capsys.readouterr().err
    )
    assert call(toy_config, "--dry_run", "trainer.loss_weights.action_l1=2") == 0


def test_a_dry_run_writes_nothing(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(toy_config, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "images uint8 [4, 1, 3, 16, 16]" in out
    assert "memory of one process" in out
    assert not (toy_config.parent / "runs").exists()


@pytest.mark.parametrize("words", [(), ("trainer.precision=bf16", "trainer.ema_decay=0.9")])
def test_a_dry_run_of_a_large_model_makes_none(
    toy_config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """What it says is what the model itself would."""
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree("PI0", "tiny").data["framework"] | {"horizon": 4}
    toy_config.write_text(yaml.safe_dump(node))
    assert call(toy_config, "--dry_run", *words) == 0
    made = capsys.readouterr().out.splitlines()
    assert any(line.startswith("frozen, because no loss") for line in made)
    monkeypatch.setattr(runs, "LARGE", 0)
    monkeypatch.setattr(Engine, "prepare", None)
    assert call(toy_config, "--dry_run", *words) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line not in made] == [
        "so large a model is not made for a dry run: its shapes were looked at"
    ]
    assert [line for line in made if line not in said] == []


@pytest.mark.slow
def test_patience_is_that_of_the_whole_run(toy_config: Path) -> None:
    """Nothing gets better at a rate of zero: three validations after the first one it ends."""
    words = ("trainer.val_every=2", "trainer.keep_best=val/action_mae", "trainer.patience=3")
    words += ("trainer.learning_rate.base=0", "trackers=[jsonl]")
    assert call(toy_config, *words, "run_id=whole", "trainer.max_steps=60") == 0
    assert call(toy_config, *words, "run_id=parts", "trainer.max_steps=4") == 0
    assert call(toy_config, *words, "run_id=parts", "trainer.max_steps=60", "trainer.resume=true") == 0
    for name in ("whole", "parts"):
        run = toy_config.parent / "runs" / name
        assert [path.name for path in (run / "resume").iterdir()] == ["steps_8"], name
        assert json.loads((run / "resume" / "steps_8" / "run.json").read_text())["best"]["waited"] == 3


def test_the_best_is_kept_and_patience_ends(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.max_steps=60", "trainer.val_every=2", "trainer.keep_best=val/action_mae")
    assert call(toy_config, *words, "trainer.patience=1", "trainer.learning_rate.base=1") == 0
    run = toy_config.parent / "runs" / "toy"
    best = json.loads((run / "best.json").read_text())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line["val/action_mae"] for line in logged if "val/action_mae" in line]
    assert best["value"] == min(values)
    assert (run / "checkpoints" / "best" / "model.safetensors").exists()
    assert logged[-1]["step"] < 60
    said = " ".join(capsys.readouterr().out.split())
    assert f"ends here: val/action_mae was looked at once since its lowest, {min(values):.4g} at step" in said


@pytest.mark.parametrize(
    ("word", "way"),
    [
        *(
            (f"sharding=zero{stage}", f"accelerate launch --config_file configs/accelerate/zero{stage}.yaml ")
            for stage in (1, 2, 3)
        ),
        ("sharding=ddp", "torchrun --nproc_per_node N -m vla_train ... is DDP without this key"),
        ("precision=fp8", "set trainer.fp8: linears"),
    ],
)
def test_a_word_for_what_is_asked_for_elsewhere_names_the_way(
    toy_config: Path, capsys: pytest.CaptureFixture[str], word: str, way: str
) -> None:
    err = fails(capsys, toy_config, f"trainer.{word}")
    assert f"no '{word.partition('=')[2]}' here; " in err
    assert way in err


def test_a_mapping_on_the_command_line_wants_spaces(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a colon wants a space after it" in fails(capsys, toy_config, "trainer.unfreeze={4:[vlm]}")
