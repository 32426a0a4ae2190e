"""What an out-of-memory advises: what each change saves is what the estimate of the changed run says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vla_core.model import VLAModel
from vla_train.config import TrainerConfig
from vla_train.engine import Engine, make_engine
from vla_train.engine.base import KINDS
from vla_train.lora import LoRAConfig, apply_lora
from vla_train.memory.activations import activations
from vla_train.memory.estimate import GIB, Estimate, estimate
from vla_train.memory.held import Activations, Block
from vla_train.memory.out_of_memory import missing
from vla_train.memory.savings import Fix, advice, fixes, saves
from vla_train.optimizer.precision import set_precision
from vla_train.testing.sizes import framework_tree
from vla_train.testing.trace import build, training_batch

ROWS = 8


def run(rows: int = ROWS, words: tuple[str, ...] = (), **options: Any) -> tuple[VLAModel, Estimate]:
    """Model and estimate of QwenGR00T at size tiny."""
    settings = TrainerConfig(device="cpu", batch_size=rows, **options)
    engine = make_engine(settings)
    policy = build(framework_tree("QwenGR00T", "tiny", words), "tiny")
    if settings.lora is not None:
        apply_lora(policy.model, settings.lora)
    set_precision(policy.model, settings, engine)
    found = activations(policy.model, training_batch(policy, rows), settings, engine)
    assert not found.why_not
    return policy.model, estimate(policy.model, settings, engine, (), found)


def changed(words: str, **options: Any) -> Estimate:
    """What the fix with these words expects of the run with ``options``."""
    model, now = run(**options)
    settings = TrainerConfig(device="cpu", **{"batch_size": ROWS, **options})
    (fix,) = [fix for fix in fixes(model, settings, make_engine(settings)) if fix.words == words]
    return fix.apply(now)


def same(ours: Estimate, theirs: Estimate, rel: float) -> None:
    assert dict(ours.whole) == pytest.approx(dict(theirs.whole), rel=rel)
    assert ours.peak == pytest.approx(theirs.peak, rel=rel)


def test_a_smaller_batch_takes_what_is_estimated_for_it() -> None:
    words = f"trainer.batch_size={ROWS // 4} trainer.gradient_accumulation_steps=4"
    _, real = run(ROWS // 4, precision="bf16", gradient_accumulation_steps=4)
    same(changed(words, precision="bf16"), real, 0.01)


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_compiled_blocks_and_their_budget_keep_what_is_estimated(precision: str) -> None:
    _, real = run(precision=precision, compile="blocks", activation_budget=0.5)
    same(changed("trainer.compile=blocks trainer.activation_budget=0.5", precision=precision), real, 1e-6)
    _, full = run(precision=precision, compile="blocks")
    same(changed("trainer.compile=blocks", precision=precision), full, 1e-6)
    again = changed("trainer.activation_budget=0.5", precision=precision, compile="blocks")
    same(again, real, 1e-6)


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_blocks_that_run_again_keep_about_what_is_estimated(precision: str) -> None:
    words = "framework.vlm.gradient_checkpointing=true"
    _, real = run(words=(words,), precision=precision)
    expected = changed(words, precision=precision)
    assert real.peak is not None
    assert expected.peak is not None
    assert expected.peak == pytest.approx(real.peak, rel=0.02)
    # Those that run again already are not advised to.
    model, now = run(words=(words,), precision=precision)
    settings = TrainerConfig(device="cpu")
    (fix,) = [fix for fix in fixes(model, settings, make_engine(settings)) if fix.words == words]
    assert saves(now, fix) == 0


@pytest.mark.parametrize("precision", ["autocast", "fp32"])
def test_bf16_takes_about_what_is_estimated(precision: str) -> None:
    _, real = run(precision="bf16")
    same(changed("trainer.precision=bf16", precision=precision), real, 0.1)


@pytest.mark.parametrize("moments", ["bf16", "8bit"])
def test_moments_take_what_is_estimated(moments: str) -> None:
    _, real = run(precision="bf16", moments=moments)
    same(changed(f"trainer.moments={moments}", precision="bf16"), real, 1e-6)


def test_adapters_take_what_is_estimated() -> None:
    pytest.importorskip("peft")
    _, real = run(precision="bf16", lora=LoRAConfig(modules=("vlm",)))
    expected = changed("trainer.lora.modules=[vlm]", precision="bf16")
    for kind in ("gradients", "masters", "moments"):
        assert expected.whole[kind] == pytest.approx(real.whole[kind], rel=0.02), kind


def synthetic(world: int = 1, spreads: tuple[str, ...] = ()) -> Estimate:
    """1 G weights in bf16: 2 + 2 + 2 + 8 GiB, and 20 GiB of activations in 10 blocks, 4 GiB beside them."""
    blocks = (Block(kept=2 * GIB, made=GIB, read=GIB // 2, given=GIB // 4, may_run_again=True),) * 10
    found = Activations(Block(kept=4 * GIB), blocks, gradients=2 * GIB, budget=None)
    whole = dict(zip(KINDS, (2 * GIB, 2 * GIB, 2 * GIB, 8 * GIB, 0), strict=True))
    return Estimate(whole, frozenset(spreads), world, GIB, 4, found)


def of(**options: Any) -> list[Fix]:
    settings = TrainerConfig(device="cpu", batch_size=8, precision="bf16", **options)
    return fixes(torch.nn.Linear(1, 1), settings, make_engine(settings))


def test_the_cheapest_of_those_that_suffice_come_first() -> None:
    now = synthetic()
    assert now.peak == 36 * GIB
    said = advice(now, of(), 3 * GIB)
    # Compiled blocks keep 1.75 GiB each; half of 24 GiB beside 2 GiB of gradients that wait.
    assert said == (
        "about 3.0 GiB are missing; each of these is enough, cheapest in speed first: "
        "trainer.moments=bf16 (saves about 4.0 GiB); "
        "trainer.batch_size=4 trainer.gradient_accumulation_steps=2 (saves about 10.0 GiB); "
        "trainer.compile=blocks trainer.activation_budget=0.9 (saves about 7.5 GiB); "
        "framework.vlm.gradient_checkpointing=true (saves about 17.5 GiB); or else: "
        "trainer.sharding=fsdp2 on 2 GPUs (torchrun --nproc_per_node 2) (saves about 4.5 GiB)"
    )
    # What saves 2.5 GiB is left out of the above, and is first here.
    assert "first: trainer.compile=blocks (saves about 2.5 GiB); trainer.moments" in advice(
        now, of(), 2 * GIB
    )


def test_where_nothing_alone_is_enough_it_says_which_together() -> None:
    said = advice(synthetic(), of(), int(23.5 * GIB))
    assert "23.5 GiB are missing, and nothing alone is enough: " in said
    # Of each kind of change the most.
    assert "trainer.batch_size=1 trainer.gradient_accumulation_steps=8 (saves about 19.0 GiB)" in said
    assert "trainer.moments=8bit (saves about 6.0 GiB)" in said
    smallest = "trainer.batch_size=1 trainer.gradient_accumulation_steps=8"
    assert f"enough together: {smallest} trainer.moments=8bit (saves about 25.0 GiB)" in said
    # The mildest that do, and the cheapest of these.
    half = "trainer.batch_size=2 trainer.gradient_accumulation_steps=4"
    said = advice(synthetic(), of(), 20 * GIB)
    assert f"enough together: trainer.moments=bf16 {half} (saves about 20.0 GiB)" in said
    assert "enough together" not in advice(synthetic(), of(), 35 * GIB)


def test_what_is_taken_together_is_enough_and_changes_nothing_twice() -> None:
    now, found = synthetic(), of()
    for wanted in range(16, 30):
        said = advice(now, found, wanted * GIB)
        if "enough together: " not in said:
            continue
        words = said.partition("enough together: ")[2].partition(" (saves about ")[0]
        keys = [word.partition("=")[0] for word in words.split()]
        assert len(keys) == len(set(keys)), words
        saved = float(said.partition("enough together: ")[2].partition(" (saves about ")[2].split()[0])
        assert saved >= wanted - 0.06


def test_without_an_estimate_of_activations_all_are_named() -> None:
    whole = dict(synthetic().whole)
    now = Estimate(whole, frozenset(), 1, GIB, 4, Activations(why_not="RuntimeError: no"))
    said = advice(now, of(), 5 * GIB)
    assert "trainer.moments=8bit (saves about 5.9 GiB)" in said or "6.0 GiB" in said
    said = advice(now, of(), 50 * GIB)
    assert "what takes less, cheapest in speed first: trainer.compile=blocks (not estimated); " in said


def test_an_engine_is_advised_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(**facts: Any) -> str:
        settings = TrainerConfig(device="cpu", batch_size=8, precision="bf16")
        engine: Engine = make_engine(settings)
        for name, value in facts.items():
            monkeypatch.setattr(engine, name, value)
        return " ".join(fix.words for fix in fixes(torch.nn.Linear(1, 1), settings, engine))

    assert "compile" not in words(gathers_inside=True)
    assert "moments" not in words(has_masters=True)
    assert "8bit" not in words(shards=True, world=2)
    assert "on the same" not in words(shards=True, world=2)
    assert "on the same 2 GPUs" in words(world=2)
    assert "on 3 GPUs" not in words(world=2)
    assert "moments=bf16" not in " ".join(fix.words for fix in of(betas=(0.9, 0.999)))


def test_conversations_with_a_batch_size_of_their_own_shrink_too() -> None:
    settings = TrainerConfig(device="cpu", batch_size=8)
    found = fixes(torch.nn.Linear(1, 1), settings, make_engine(settings), 4)
    words = [fix.words for fix in found if "batch_size" in fix.words]
    assert words[0] == "trainer.batch_size=4 datasets.vlm.batch_size=2 trainer.gradient_accumulation_steps=2"
    assert len(words) == 2


def test_what_is_missing_is_at_least_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 79.11 GiB"
    assert missing(said, synthetic(), torch.device("cpu")) == GIB // 2
    assert missing("out of memory", synthetic(), torch.device("cpu")) == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 19 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 18 * GIB)
    cuda = torch.device("cuda")
    # 36 GiB are expected where 19 may be filled.
    assert missing(said, synthetic(), cuda) == 17 * GIB
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 59 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 59 * GIB)
    # More is in use than was expected.
    assert missing(said, synthetic(), cuda) == pytest.approx(2.5 * GIB)
