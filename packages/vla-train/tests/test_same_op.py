"""Operations of the same shapes are looked up, and the estimate is that of looking each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.memory import shadow
from vla_train.memory.activations import activations
from vla_train.memory.held import Activations
from vla_train.memory.same_op import SameOp
from vla_train.optimizer.precision import set_precision
from vla_train.testing.sizes import Size, framework_tree
from vla_train.testing.trace import build, training_batch

aten = torch.ops.aten


def estimated(name: str, size: Size, words: list[str], options: dict[str, Any]) -> Activations:
    settings = TrainerConfig(device="cpu", **options)
    engine = make_engine(settings)
    policy = build(framework_tree(name, size, words), size)
    set_precision(policy.model, settings, engine)
    found = activations(policy.model, training_batch(policy, 4), settings, engine)
    assert not found.why_not
    return found


def each_time(self: Any, func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


GROOT = ("QwenGR00T", "full", ["vlm.base_vlm=3b"])
MANY: list[tuple[str, Size, list[str]]] = [
    ("QwenGR00T", "tiny", ["vlm.gradient_checkpointing=true"]),
    ("QwenPI", "full", ["vlm.base_vlm=3b"]),
    ("QwenOFT", "full", []),
    ("QwenFast", "tiny", []),
    ("PI0", "full", []),
    ("MapAnythingLlava3DPI", "tiny", []),
    ("QwenDual", "tiny", []),
    ("QwenAdapter", "tiny", []),
]


@pytest.mark.parametrize(
    ("name", "size", "words"), [GROOT, *(pytest.param(*each, marks=pytest.mark.slow) for each in MANY)]
)
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16", "compile": "blocks", "activation_budget": 0.8},
        pytest.param({"precision": "autocast", "gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
    ],
    ids=["compiled", "accumulated"],
)
def test_the_estimate_is_the_same(
    name: str, size: Size, words: list[str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = estimated(name, size, words, options)
    monkeypatch.setattr(shadow.SameOp, "__call__", each_time)
    assert estimated(name, size, words, options) == quick


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_what_was_done_is_not_done_again() -> None:
    same = SameOp()
    x, y = meta(3, 5), meta(5)
    first, second = (same(aten.mul.Tensor, (x, y), {}) for _ in range(2))
    assert len(same._known) == 1
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    for out in (first, second):
        assert (out.shape, out.dtype, out.device.type) == ((3, 5), torch.bfloat16, "meta")
    # Strides are kept: what follows may copy or not.
    for _ in range(2):
        assert same(aten.mul.Tensor, (x.t(), 2.0), {}).stride() == (1, 5)
    several = [same(aten.native_layer_norm.default, (x, [5], y, None, 1e-5), {}) for _ in range(2)]
    assert [[out.shape for out in outs] for outs in several] == [[(3, 5), (3, 1), (3, 1)]] * 2
    joined = [same(aten.cat.default, ([meta(n, 5), x],), {}) for n in (1, 2, 2)]
    assert [out.shape[0] for out in joined] == [4, 5, 5]


def test_what_promotes_differently_is_different() -> None:
    same, x = SameOp(), meta(3, dtype=torch.int64)
    kinds = [same(aten.mul.Tensor, (x, one), {}).dtype for one in (1, 1.0, True, 1)]
    assert kinds == [torch.int64, torch.float32, torch.int64, torch.int64]
    assert same(aten._to_copy.default, (x,), {"dtype": torch.float32}).dtype == torch.float32
    assert same(aten._to_copy.default, (x,), {"dtype": torch.bfloat16}).dtype == torch.bfloat16


def test_views_and_changes_in_place_are_done_each_time() -> None:
    same, x = SameOp(), meta(4, 6)
    for _ in range(2):
        assert same(aten.view.default, (x, [24]), {}).untyped_storage()._cdata == x.untyped_storage()._cdata
        assert same(aten.add_.Tensor, (x, 1), {}) is x
    assert not same._known
