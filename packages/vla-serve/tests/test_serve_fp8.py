"""Float8: where it is refused, which layers it takes, and on a GPU how far answers move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra vla-serve[server]")

from torch import nn  # noqa: E402
from vla_core.errors import UserError  # noqa: E402
from vla_core.features import Constraint  # noqa: E402
from vla_core.interfaces import HeadDims, HeadInputs, VLMOutput  # noqa: E402
from vla_core.packing import forget, pack  # noqa: E402
from vla_core.testing import make_spec, register_fakes, tiny_policy  # noqa: E402
from vla_serve import fp8  # noqa: E402
from vla_serve.loading import CheckpointLoader  # noqa: E402
from vla_serve.server_cli import main  # noqa: E402


@pytest.fixture
def float8_on_cpu(monkeypatch) -> None:
    """Of small layers too. A CPU has products of one scale a tensor; torchao asks for a GPU all the same."""
    pytest.importorskip("torchao")
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerTensor, quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(
        fp8, "_rows", lambda: Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor())
    )
    monkeypatch.setattr(fp8, "LEAST", 16)


def test_is_refused_on_a_cpu_in_one_line(tmp_path, capsys) -> None:
    assert main(["--ckpt_path", str(tmp_path), "--port", "0", "--fp8", "--dtype", "bfloat16"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--fp8: runs on a GPU, and --device is cpu" in line


def test_is_refused_for_float32_and_for_an_older_gpu(monkeypatch) -> None:
    with pytest.raises(UserError, match="add --dtype bfloat16"):
        fp8.check("cuda", torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
    with pytest.raises(UserError, match=r"compute capability 8.9 or later, an A100 has 8.0|not installed"):
        fp8.check("cuda", torch.bfloat16)


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_takes_large_even_layers_of_backbone_and_head_alone() -> None:
    model = nn.ModuleDict(
        {
            "vlm": nn.ModuleDict(
                {"wide": nn.Linear(512, 1024), "odd": nn.Linear(512, 1028), "own": Own(512, 512)}
            ),
            "head": nn.ModuleDict({"wide": nn.Linear(1024, 512), "small": nn.Linear(1024, 7)}),
            "geometry": nn.ModuleDict({"wide": nn.Linear(512, 512)}),
        }
    )
    assert list(fp8.candidates(model)) == ["vlm.wide", "head.wide"]


def test_a_policy_without_such_layers_is_refused() -> None:
    with register_fakes(), pytest.raises(UserError, match="no linear layer of at least 512 x 512"):
        fp8.round_linears(tiny_policy(make_spec()).eval())


def test_a_rounded_policy_answers_nearly_the_same(float8_on_cpu) -> None:
    with register_fakes():
        policy = tiny_policy(make_spec()).eval().to(dtype=torch.bfloat16)
        chosen = fp8.candidates(policy.model)
        found = fp8.round_linears(policy)
    assert found.layers == len(chosen) > 0
    assert found.kept == 0
    assert 0 < found.share < 1
    assert 0.97 < found.cosine < 1
    assert f"fp8: {found.layers} linear layers" in str(found)


def test_what_has_no_product_in_float8_stays_as_it_is(monkeypatch, float8_on_cpu) -> None:
    tried, multiply = [], torch._scaled_mm
    with register_fakes():
        policy = tiny_policy(make_spec()).eval().to(dtype=torch.bfloat16)
    chosen = fp8.candidates(policy.model)
    assert len(chosen) == 2
    plain = list(chosen)[-1]
    chosen[plain].bias = None

    def refusing(a, b, *rest, bias=None, **options):
        tried.append(len(a))
        if bias is None:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")
        return multiply(a, b, *rest, bias=bias, **options)

    monkeypatch.setattr(torch, "_scaled_mm", refusing)
    with register_fakes():
        found = fp8.round_linears(policy)
    assert (found.kept, found.layers) == (1, 1)
    for name, layer in chosen.items():
        assert (type(layer.weight.data) is torch.Tensor) == (name == plain)
    assert "(1 stay bfloat16" in str(found)
    # Products of one robot and of many were tried before anybody is answered.
    assert max(tried) >= fp8.MOST * min(tried)


def test_rows_are_counted_however_a_layer_is_called(monkeypatch) -> None:
    layer = torch.nn.Linear(4, 2)
    policy: Any = SimpleNamespace(model=torch.nn.Sequential(layer))

    def answers(policy, rows):
        layer(torch.zeros(rows, 3, 4))
        layer(input=torch.zeros(rows, 5, 4))

    monkeypatch.setattr(fp8, "_answers", answers)
    assert fp8._lengths(policy) == {3, 5}
    assert not layer._forward_pre_hooks


class Keeping(nn.Module):
    """Answers with what it once made of two layers, of which it says that one is read for that alone."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.rare = nn.Linear(32, 32), nn.Linear(32, 32)
        self.kept: torch.Tensor | None = None

    def make(self) -> torch.Tensor:
        return self.rare(self.wide(torch.ones(16, 32, dtype=torch.bfloat16)))

    def forward(self) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.make()
        return self.kept

    def forget(self) -> None:
        self.kept = None

    def read_once(self) -> list[nn.Module]:
        return [self.rare]


def test_what_was_kept_of_unrounded_weights_is_made_anew(monkeypatch, float8_on_cpu) -> None:
    """The answers that rounded ones are compared with come first."""
    policy: Any = SimpleNamespace(model=nn.ModuleDict({"head": Keeping()}).to(torch.bfloat16))
    head = policy.model["head"]

    def answers(policy, rows=fp8.ROWS):
        with torch.inference_mode():
            return head().float()

    monkeypatch.setattr(fp8, "_answers", answers)
    found = fp8.round_linears(policy)
    assert type(head.wide.weight.data) is not torch.Tensor
    assert type(head.rare.weight.data) is torch.Tensor
    assert found.largest > 0
    with torch.inference_mode():
        assert torch.equal(head(), head.make())


def test_what_the_time_contributes_is_of_the_weights_that_are_served(monkeypatch, float8_on_cpu) -> None:
    heads = pytest.importorskip("vla_heads")
    dims = HeadDims(hidden_size=64, n_layers=2, action_dim=4, horizon=8)
    head = heads.LayerwiseFM.build(heads.LayerwiseFMConfig(n_heads=2), dims).eval().to(torch.bfloat16)
    pack(head)
    hidden = {i: torch.ones(4, 16, 64, dtype=torch.bfloat16) for i in (1, 2)}
    inputs = HeadInputs(VLMOutput(hidden, torch.ones(4, 16, dtype=torch.bool), {}))
    policy: Any = SimpleNamespace(model=nn.ModuleDict({"head": head}))

    def answers(policy, rows=fp8.ROWS):
        with torch.inference_mode():
            return head.sample(inputs, torch.ones(4, 8, 4))

    monkeypatch.setattr(fp8, "_answers", answers)
    assert fp8.round_linears(policy).layers > 0
    assert all(type(block.ada.modulation.weight.data) is torch.Tensor for block in head.blocks)
    assert type(head.blocks[0].qkv.weight.data) is not torch.Tensor
    with torch.inference_mode():
        kept = head.plan()
        assert head.plan() is kept
        forget(head)
        for one, anew in zip(kept, head.plan(), strict=True):
            assert torch.equal(one.actions, anew.actions)
            assert all(map(torch.equal, one.modulations, anew.modulations))


def test_a_rounded_head_draws_an_answer_towards_an_earlier_chunk(monkeypatch, float8_on_cpu) -> None:
    """Real-time chunking differentiates through the head, and products in float8 have no derivative."""
    heads = pytest.importorskip("vla_heads")
    dims = HeadDims(hidden_size=64, n_layers=2, action_dim=4, horizon=8)
    head = heads.LayerwiseFM.build(heads.LayerwiseFMConfig(n_heads=2), dims).eval().to(torch.bfloat16)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.05)  # outputs begin at zero
    pack(head)
    hidden = {i: torch.randn(2, 16, 64, dtype=torch.bfloat16) for i in (1, 2)}
    inputs = HeadInputs(VLMOutput(hidden, torch.ones(2, 16, dtype=torch.bool), {}))
    weights = torch.tensor([1.0, 1.0, 0.5, 0.25, 0, 0, 0, 0]).expand(2, 8)
    bound = Constraint(torch.full((2, 8, 4), 0.3), weights, 2)
    policy: Any = SimpleNamespace(model=nn.ModuleDict({"head": head}))

    def answers(policy=policy, rows=2):
        with torch.inference_mode():
            return head.sample(inputs, torch.ones(2, 8, 4), constraint=bound).float()

    monkeypatch.setattr(fp8, "_answers", answers)
    before = answers()
    assert fp8.round_linears(policy).layers > 0
    after = answers()
    assert torch.equal(after, answers())
    assert torch.cosine_similarity(before.flatten(), after.flatten(), 0) > 0.98
    torch.compiler.reset()
    for block in head.blocks:
        block.compile(backend="aot_eager")
    compiled = answers()
    assert torch.cosine_similarity(after.flatten(), compiled.flatten(), 0) > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_answers_move_by_little(tmp_path, monkeypatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(fp8, "LEAST", 16)
    with register_fakes():
        policy = tiny_policy(make_spec()).eval()
        policy.save(tmp_path / "steps_1", step=1, config={"framework": policy.config})
        loaded = CheckpointLoader("cuda", torch.bfloat16, graphs=False).__call__(tmp_path / "steps_1")
        found = fp8.round_linears(loaded.policy)
    assert found.layers > 0
    assert found.cosine > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_a_large_head_computes_whether_it_is_rounded_or_not(bias: bool) -> None:
    pytest.importorskip("torchao")
    layer = nn.Linear(8192, 2048, bias, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(49, 8192, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        before = layer(x)
        rounded = fp8._round(layer, {49}, {})
        after = layer(x)
    assert rounded == (type(layer.weight.data) is not torch.Tensor)
    assert torch.cosine_similarity(before.flatten(), after.flatten(), 0) > 0.99
