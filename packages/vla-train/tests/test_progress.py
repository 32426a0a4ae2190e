"""What a run says while it trains: FLOP that are counted, and every part of the line."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from vla_core.batch import Batch, TokenFields
from vla_core.errors import UserError
from vla_train.cli import main
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.monitoring.flops import peak_tflops, sample_flop, utilisation
from vla_train.monitoring.under_way import under_way

ROWS, IN, OUT = 3, 8, 16


class Two(nn.Module):
    """Two layers and attention between them; ``again``: the first is run again in the backward pass."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.again = nn.Linear(IN, OUT, bias=False), nn.Linear(OUT, IN, bias=False), again

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        assert batch.state is not None
        x = checkpoint(self.one, batch.state, use_reentrant=False) if self.again else self.one(batch.state)
        heads = x.reshape(1, 2, ROWS, OUT // 2)
        x = nn.functional.scaled_dot_product_attention(heads, heads, heads).reshape(ROWS, OUT)
        return {"loss": self.two(x).square().mean()}


def batch() -> Batch:
    ids = torch.zeros(ROWS, 1, dtype=torch.long)
    tokens = TokenFields(ids, ids.bool(), ids.byte())
    images, views = torch.zeros(ROWS, 1, 3, 2, 2, dtype=torch.uint8), torch.ones(ROWS, 1, dtype=torch.bool)
    return Batch(images, views, tokens, ids[:, 0], state=torch.randn(ROWS, IN))


@pytest.mark.parametrize("again", [False, True])
def test_flop_are_those_of_the_products(again: bool) -> None:
    """Forward 1; backward 2 where a weight and an input have gradients, 1 where one has; nothing twice."""
    engine = make_engine(TrainerConfig(device="cpu"))
    one = 2 * IN * OUT
    attention = 2 * 2 * 2 * ROWS * ROWS * (OUT // 2) / ROWS
    model = Two(again)
    # The first layer's input is the data, which has no gradient.
    assert sample_flop(model, batch(), engine) == one * 2 + attention * 3 + one * 3
    assert all(p.grad is None for p in model.parameters())
    model.one.requires_grad_(False)
    assert sample_flop(model, batch(), engine) == one + attention + one * 2
    assert utilisation(model, batch(), engine, None) is None
    share = utilisation(model, batch(), engine, 1e-9)
    assert share == pytest.approx((one + attention + one * 2) / 1000)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA H20", 148),
     ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA L40", None)],
)  # fmt: skip
def test_the_peak_is_that_of_the_very_chip(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda")) == peak


def test_a_line_says_everything(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(toy_config), "trainer.peak_tflops=0.001", "trainer.log_every=4"]) == 0
    said = capsys.readouterr().out
    pattern = (
        r"step 8/8  loss [\d.]+  lr \d\.\d\de-\d\d  \d+ samples/s  data wait \d+ %  MFU [\d.]+ %  "
        r"memory [\d.]+ GiB  0:00:00 left"
    )
    assert re.search(pattern, said), said
    path = toy_config.parent / "runs" / "toy" / "metrics.jsonl"
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    logged = [line for line in logged if "loss" in line]
    assert [line["step"] for line in logged] == [4, 8]
    for line in logged:
        assert line["mfu"] > 0
        assert line["mfu"] / line["samples_per_s"] == pytest.approx(
            logged[0]["mfu"] / logged[0]["samples_per_s"]
        )
        assert 0 < line["host_memory_gib"] < 24
    assert logged[0]["eta_s"] > logged[1]["eta_s"] == 0


def test_a_long_validation_says_where_it_is(
    toy_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["--config", str(toy_config), "trainer.batch_size=2", "trainer.val_every=8"]
    between = r"(validation on \S+|predictions for predictions\.npz): (\d+) of (\d+) samples"
    monkeypatch.setattr("vla_train.monitoring.progress.LINE_EVERY_S", 3600.0)
    assert main(run) == 0
    assert not re.search(between, capsys.readouterr().out), "a short one is not worth a line"
    monkeypatch.setattr("vla_train.monitoring.progress.LINE_EVERY_S", 0.0)
    assert main([*run, "run_id=again"]) == 0
    said = re.findall(between, capsys.readouterr().out)
    for what in {what for what, _, _ in said}:
        done, counts = zip(*((int(a), int(b)) for name, a, b in said if name == what), strict=True)
        assert done == tuple(range(0, counts[0], 2))
    assert len({what for what, _, _ in said}) == 2


def test_without_a_known_peak_there_is_no_figure(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(toy_config)]) == 0
    assert "MFU" not in capsys.readouterr().out
    assert "mfu" not in (toy_config.parent / "runs" / "toy" / "metrics.jsonl").read_text()


def test_the_first_line_waits_for_no_model(
    toy_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(*args: object, **options: object) -> None:
        raise UserError("the weights are read for minutes")

    monkeypatch.setattr("vla_train.runs.compose", stuck)
    assert main(["--config", str(toy_config)]) == 2
    assert capsys.readouterr().out == "QwenPI on cpu: the data are opened, and the model is made\n"


def test_what_lasts_is_said_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_train.monitoring.under_way.AFTER_S", 0.0)
    monkeypatch.setattr("vla_train.monitoring.under_way.AGAIN_S", 0.0)
    said: list[str] = []
    twice = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            twice.set()

    with under_way(say, "making the model"):
        assert twice.wait(60)
    assert all(re.fullmatch(r"making the model: \d+ s so far", text) for text in said)
    assert not any(thread.name == "under way" for thread in threading.enumerate())
    with under_way(None, "nobody hears it"):
        pass
