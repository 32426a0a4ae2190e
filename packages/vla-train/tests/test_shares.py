"""Models of which every rank keeps its share from the start: the numbers of one process, in less memory."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from vla_train.composition import Composed, compose
from vla_train.engine.shares import NotByShares, check_complete, keeping_shares, share_of
from vla_train.lora import LoRAConfig, apply_lora
from vla_train.presets import load_run_tree
from vla_train.testing import framework_tree
from vla_train.testing.ledger import Ledger


class Model(nn.Module):
    """Tied weights, draws, views and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, padding_idx=3)
        self.layer = nn.Linear(4, 7)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight
        self.attend = nn.MultiheadAttention(4, 2)
        self.query = nn.Parameter(torch.randn(3, 4))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("table", torch.arange(5.0))
        nn.init.trunc_normal_(self.layer.weight, std=0.02)
        self.layer.weight.data[2:5].zero_()
        with torch.no_grad():
            self.layer.bias.copy_(torch.arange(7.0))
            self.embed.weight[0].normal_()
            self.query[:, 1:3].copy_(torch.eye(3)[:, :2])
            for row in self.query:
                nn.init.uniform_(row, 0, 2)


def joined(models: list[nn.Module], name: str, like: Tensor) -> Tensor:
    shares = [share_of(model.get_parameter(name)) for model in models]
    assert None not in shares
    rows = [share.rows for share in shares if share is not None]
    return (torch.cat(rows) if like.ndim else rows[0]).reshape(like.shape)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_are_those_of_the_whole(world: int) -> None:
    torch.manual_seed(0)
    whole = Model()
    drawn = torch.rand(1)
    parts: list[nn.Module] = []
    for rank in range(world):
        torch.manual_seed(0)
        with keeping_shares(rank, world):
            part = Model()
        check_complete(part)
        assert torch.equal(torch.rand(1), drawn)
        assert part.out.weight is part.embed.weight
        assert all(p.is_meta for p in part.parameters())
        assert torch.equal(part.table, whole.table)
        parts.append(part)
    for name, value in whole.named_parameters():
        assert torch.equal(joined(parts, name, value), value), name


def test_a_type_is_changed_in_place() -> None:
    def build() -> nn.Linear:
        layer = nn.Linear(4, 7).to(torch.bfloat16)
        nn.init.normal_(layer.bias)
        return layer

    torch.manual_seed(0)
    whole = build()
    parts: list[nn.Module] = []
    for rank in range(2):
        torch.manual_seed(0)
        with keeping_shares(rank, 2):
            part = build()
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in part.parameters())
        parts.append(part)
    for name, value in whole.named_parameters():
        assert torch.equal(joined(parts, name, value), value), name


def test_what_shares_cannot_follow_is_said() -> None:
    with keeping_shares(0, 2):
        layer = nn.Linear(4, 4)
        with pytest.raises(NotByShares, match="through 't'"):
            layer.weight.t().data.zero_()
        layer.register_buffer("lost", torch.empty(3, device=layer.weight.device))
    with pytest.raises(NotByShares, match="'lost'"):
        check_complete(layer)
    with keeping_shares(0, 2):
        layer = nn.Linear(4, 4)
        layer.register_buffer("seen", layer.weight.detach())
    with pytest.raises(NotByShares, match="'seen'"):
        check_complete(layer)


def test_no_more_than_a_share_and_a_parameter_lives() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(16)))

    peaks = []
    for world in (1, 2, 4):
        with Ledger() as ledger, keeping_shares(0, world):
            kept = build()
        assert len(kept) == 16
        del kept
        peaks.append(ledger.peak)
    layer = 4 * 64 * 64
    with Ledger() as ledger:
        whole = build()
    assert len(whole) == 16
    assert ledger.peak >= 16 * layer
    assert peaks[1] <= 8 * layer + 3 * layer
    assert peaks[2] <= 4 * layer + 3 * layer


def compared(config: Path) -> Composed:
    """What a config makes, once its shares on two ranks were found to be that."""
    tree = load_run_tree([config])
    whole = compose(tree)
    parts = [compose(tree, sharing=lambda rank=rank: keeping_shares(rank, 2)) for rank in range(2)]  # type: ignore[misc]
    assert all(part.notes == whole.notes for part in parts)
    for name, value in whole.model.named_parameters():
        assert torch.equal(joined([part.model for part in parts], name, value), value), name
    for name, value in whole.model.named_buffers():
        assert all(torch.equal(part.model.get_buffer(name), value) for part in parts), name
    return whole


@pytest.mark.parametrize("preset", ["QwenGR00T", "QwenMapAnythingPI"])
def test_presets_are_kept_by_shares(toy_config: Path, preset: str) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree(preset, "tiny").data["framework"] | {"horizon": 4}
    if node["framework"].get("geometry"):
        node["framework"]["geometry"] |= {"bf16": True, "trainable": False}
    toy_config.write_text(yaml.safe_dump(node))
    compared(toy_config)


def test_published_weights_are_kept_by_shares(toy_config: Path, tmp_path: Path) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree("QwenGR00T", "tiny").data["framework"] | {"horizon": 4}
    node["framework"]["vlm"] |= {"vision": "vit"}
    toy_config.write_text(yaml.safe_dump(node))
    published, vlm = tmp_path / "published", compose(load_run_tree([toy_config])).policy.model.vlm
    vlm.save_assets(published)
    weights = {f"model.{name}": value.contiguous() for name, value in vlm.model.state_dict().items()}
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    node["framework"]["vlm"]["base_vlm"] = str(published)
    toy_config.write_text(yaml.safe_dump(node | {"seed": 5}))
    whole = compared(toy_config)
    name = "vlm.model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(whole.model.get_parameter(name), weights[name.removeprefix("vlm.")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_kept_by_shares(toy_config: Path, dtype: str) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree("QwenGR00T", "tiny").data["framework"] | {"horizon": 4}
    node["framework"]["vlm"] |= {"dtype": dtype}
    toy_config.write_text(yaml.safe_dump(node))
    tree = load_run_tree([toy_config])
    config = LoRAConfig(("vlm.model.language_model",), rank=4)

    def adapted(rank: int, world: int) -> tuple[nn.Module, Tensor]:
        def sharing() -> Any:
            return keeping_shares(rank, world) if world > 1 else nullcontext()

        composed = compose(tree, sharing=sharing)
        assert not composed.notes
        with Ledger() as ledger, sharing():
            apply_lora(composed.model, config)
        # In fp32: a rank's rows of all adapters, and one adapter.
        size = sum(4 * p.numel() for n, p in composed.model.named_parameters() if ".lora_" in n)
        assert world == 1 or 0.5 * size < ledger.peak < 0.7 * size
        return composed.model, torch.rand(1)

    whole, drawn = adapted(0, 1)
    parts, streams = zip(*(adapted(rank, 2) for rank in range(2)), strict=True)
    assert all(torch.equal(stream, drawn) for stream in streams)
    for name, value in whole.named_parameters():
        assert torch.equal(joined([*parts], name, value), value), name
        assert all(p.get_parameter(name).requires_grad == value.requires_grad for p in parts), name


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_begin_and_go_on_from_a_checkpoint_as_one_process(toy_config: Path, two_ranks: Any) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree("QwenOFT", "tiny").data["framework"] | {"horizon": 4}
    node["datasets"]["val_fraction"] = 0
    node["trainer"] |= {"max_steps": 2, "batch_size": 2, "log_every": 1, "val_every": 0, "save_resume": False}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    words, runs = ["--config", str(toy_config)], toy_config.parent / "runs"
    start = f"trainer.pretrained_checkpoint={runs / 'begun' / 'checkpoints' / 'steps_2'}"
    lora = 'trainer.lora={"modules": ["vlm.model.language_model"], "rank": 2}'
    shares = [*words, "trainer.sharding=fsdp2"]
    low = "trainer.precision=bf16"
    two_ranks.launch(
        {
            "begun": [*shares, "run_id=begun"],
            "whole": [*words, "run_id=whole", start, low],
            "shares": [*shares, "run_id=shares", start, low],
            "whole_adapters": [*words, "run_id=whole_adapters", lora],
            "adapters": [*shares, "run_id=adapters", lora],
            "whole_begun": [*words, "run_id=whole_begun", start, lora, low],
            "adapters_begun": [*shares, "run_id=adapters_begun", start, lora, low],
        }
    )
    for one, other in (
        ("whole", "shares"),
        ("whole_adapters", "adapters"),
        ("whole_begun", "adapters_begun"),
    ):
        lines = [(runs / name / "metrics.jsonl").read_text().splitlines() for name in (one, other)]
        losses = [[json.loads(line)["loss"] for line in of] for of in lines]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), other
        ours, theirs = (
            load_file(runs / name / "checkpoints/steps_2/model.safetensors") for name in (one, other)
        )
        assert ours.keys() == theirs.keys()
        for rank in (0, 1):
            seen = [two_ranks.seen(name, rank) for name in (one, other)]
            assert seen[0]["draws"] == seen[1]["draws"], other
            assert seen[0]["first"] == seen[1]["first"], other
