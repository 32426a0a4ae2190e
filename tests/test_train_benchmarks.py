"""benchmarks/train: where a recorded step's time went, and whether two loss curves are apart."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "train"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_times_of_kernels_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    profiled = load("profiled", monkeypatch)
    ms = 1_000_000
    kernels = [
        ("gemm", 0, 4 * ms),
        ("gemm", 2 * ms, 5 * ms),  # another stream
        ("ncclDevKernel_AllReduce", 3 * ms, 8 * ms),
        ("adam", 10 * ms, 12 * ms),
    ]
    found = profiled.summary(kernels, 2)
    assert found["ms"] == {
        "step": 6, "compute": 3.5, "exchange": 2.5, "overlapped": 1, "exposed": 1.5, "idle": 1,
        "idle in gaps above 0.1 ms": 1,
    }  # fmt: skip
    assert [(k["name"], k["ms"], k["count"]) for k in found["kernels"]] == [
        ("gemm", 3.5, 1), ("ncclDevKernel_AllReduce", 2.5, 0.5), ("adam", 1, 0.5),
    ]  # fmt: skip
    assert "| exposed | 1.5 |" in profiled.markdown(found)


def test_a_curve_is_judged_by_the_noise_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = load("curve", monkeypatch)
    references = [[1.0, 0.9, 0.8], [1.1, 1.0, 0.9], [0.9, 0.8, 0.7]]
    near, far = [1.01, 0.91, 0.81], [1.3, 1.2, 1.1]
    assert curve.judge(references, near, 1)["within"]
    verdict = curve.judge(references, far, 1)
    assert not verdict["within"]
    assert verdict["noise"] == pytest.approx(0.4 / 3)
    assert verdict["distance"] == pytest.approx(0.3)


def test_the_model_of_host_costs_is_cut_as_finely_as_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_core.shard import shard_units

    host = load("host", monkeypatch)
    model = host.model_of(0)
    assert (len(shard_units(model)), len(list(model.parameters()))) == (110, 1604)
    assert host.environment("zero2")["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert host.environment("fsdp2") == {}
