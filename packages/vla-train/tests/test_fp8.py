"""``trainer.fp8`` on the CPU, where torchao emulates it: near bf16, and checkpoints know nothing of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from vla_core.errors import ConfigError
from vla_core.policy import VLAPolicy
from vla_train.cli import main
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.lora import LoRAConfig
from vla_train.optimizer.fp8 import check_fp8, use_fp8
from vla_train.testing import framework_tree

pytest.importorskip("torchao")
FP8 = ["trainer.precision=bf16", "trainer.fp8=emulated"]


@pytest.fixture
def config(toy_config: Path) -> Path:
    """A real backbone and head."""
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree("QwenGR00T", "tiny").data["framework"] | {"horizon": 4}
    node["datasets"]["val_fraction"] = 0
    node["trainer"] |= {"max_steps": 4, "batch_size": 4, "log_every": 1, "val_every": 0, "warmup_steps": 0}
    node["trainer"] |= {"schedule": "constant", "learning_rate": {"base": 1e-3}}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


class Parts(nn.Module):
    """Layers that fit and such that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.vlm = nn.ModuleList([nn.Linear(32, 48), nn.Linear(32, 24), nn.Linear(20, 16)])
        self.head = nn.ModuleDict({"lm_head": nn.Linear(32, 32), "out": nn.Linear(16, 16)})
        self.geometry = nn.Linear(32, 32)


def test_layers_that_fit_are_converted_and_named() -> None:
    model = Parts().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = TrainerConfig(device="cpu", precision="bf16", fp8="emulated")
    note = use_fp8(model, settings, make_engine(settings))
    assert note == "2 of 6 linear layers compute in fp8: vlm.* (1), head.out (1)"
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(type(after[k]) is torch.Tensor and torch.equal(after[k], before[k]) for k in before)
    x = torch.randn(5, 32).bfloat16()
    exact = nn.functional.linear(x, before["vlm.0.weight"], before["vlm.0.bias"])
    rounded = model.vlm[0](x)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"fp8": "linears"}, "needs a GPU"),
        ({"precision": "fp32"}, "set precision: bf16"),
        ({"lora": LoRAConfig(modules=("vlm",))}, "leave one out"),
    ],
)
def test_what_it_cannot_be_with_is_one_line(keys: dict[str, Any], says: str) -> None:
    settings = TrainerConfig(**{"precision": "bf16", "device": "cpu", "fp8": "emulated", **keys})
    with pytest.raises(ConfigError, match=says):
        check_fp8(settings, make_engine(settings))


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    settings = TrainerConfig(device="cpu", precision="bf16", fp8="emulated")
    with pytest.raises(ConfigError, match="pip install"):
        check_fp8(settings, make_engine(settings))


@pytest.mark.slow
def test_it_trains_resumes_and_loads_as_without_it(
    config: Path, capsys: pytest.CaptureFixture[str], two_ranks: Any
) -> None:
    common, runs = ["--config", str(config)], config.parent / "runs"
    assert main([*common, "trainer.precision=bf16", "run_id=bf16"]) == 0
    assert main([*common, *FP8, "run_id=fp8"]) == 0
    assert "linear layers compute in fp8" in capsys.readouterr().out
    assert main([*common, *FP8, "run_id=parts", "trainer.max_steps=2"]) == 0
    assert main([*common, *FP8, "run_id=parts", "trainer.resume=true"]) == 0
    through, parts = (
        load_file(runs / name / "checkpoints" / "steps_4" / "model.safetensors") for name in ("fp8", "parts")
    )
    assert all(torch.equal(through[key], parts[key]) for key in through)
    exact, rounded = losses(runs / "bf16"), losses(runs / "fp8")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)
    policy = VLAPolicy.from_pretrained(runs / "fp8" / "checkpoints" / "steps_4")
    assert {type(m) for m in policy.model.modules() if isinstance(m, nn.Linear)}.isdisjoint(
        {_float8_linear()}
    )
    half = [*common, *FP8, "trainer.batch_size=2"]
    two_ranks.launch(
        {"ddp": [*half, "run_id=ddp"], "fsdp2": [*half, "run_id=fsdp2", "trainer.sharding=fsdp2"]}
    )
    ddp, fsdp2 = losses(runs / "ddp"), losses(runs / "fsdp2")
    assert ddp == pytest.approx(fsdp2, rel=1e-2)
    assert ddp == pytest.approx(rounded, rel=0.2)


def _float8_linear() -> type:
    from torchao.float8.float8_linear import Float8Linear

    return Float8Linear
