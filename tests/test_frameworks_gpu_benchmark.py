"""benchmarks/frameworks_gpu.py at size tiny: rows are measured once, a failure is a row with its reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_rows_grow_and_failures_have_reasons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import frameworks_gpu

    out = tmp_path / "rows.json"

    def run(*words: str) -> list[dict[str, object]]:
        monkeypatch.setattr(sys, "argv", ["x", "--size", "tiny", "--batch", "2", "--out", str(out), *words])
        frameworks_gpu.main()
        return list(json.loads(out.read_text()))

    first = run("QwenOFT")
    assert first[0]["samples_per_s"]
    assert first[0]["chunk_ms"]
    rows = run("QwenOFT", "--vlm", "qwen3_vl:nowhere")
    assert rows[0] == first[0]
    assert "nowhere" in str(rows[1]["error"])
    assert run("QwenOFT")[0] == first[0]  # not measured again
    table = out.with_suffix(".md").read_text()
    assert "| QwenOFT | as in the preset | 0.00 | 2 |" in table
    assert "- QwenOFT with qwen3_vl:nowhere: " in table
