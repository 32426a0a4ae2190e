"""Programs that scripts of the benchmarks start side by side end with them (benchmarks/_beside.sh)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = """set -euo pipefail
source "{beside}"
work() {{ sleep 300; }}
beside work
beside sleep 300
pids=($!)
{then}
echo ready
for pid in "${{pids[@]}}"; do wait "$pid"; done
"""
BESIDE = Path(__file__).parents[1] / "benchmarks" / "_beside.sh"


@pytest.mark.parametrize(
    ("then", "sent", "code"),
    [
        ("", signal.SIGINT, 130),
        ("", signal.SIGTERM, 143),
        ("beside false; pids=($! ${pids[@]})", None, 1),
        ("exit 0", None, 0),
    ],
)
def test_all_end_with_the_script(tmp_path: Path, then: str, sent: signal.Signals | None, code: int) -> None:
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT.format(beside=BESIDE, then=then), "utf-8")
    with subprocess.Popen(["bash", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        if sent is not None:
            assert process.stdout.readline() == b"ready\n"
            # Again and again: bash sleeps on where a signal comes just before it begins to wait.
            for _ in range(60):
                os.killpg(process.pid, sent)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                    break
        # What is started beside the script holds its output: there is no end of it before theirs.
        process.stdout.read()
        assert process.wait(60) == code
