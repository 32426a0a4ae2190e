"""The README's example runs, and importing the package is cheap."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import vla_vlm


def test_the_readmes_example_runs(capsys):
    # Beside the tests in the repository; elsewhere the copy inside the wheel's metadata.
    path = Path(__file__).parents[1] / "README.md"
    text = path.read_text("utf-8") if path.is_file() else str(metadata("vla-vlm").get_payload())
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "torch.Size([1, 144, 128]) torch.Size([1, 8, 128])"


def test_names_and_lazy_import():
    names = [
        "Florence2",
        "Florence2TinyConfig",
        "Florence2VLMConfig",
        "Llava3D",
        "Llava3DConfig",
        "Llava3DTinyConfig",
        "PaliGemma",
        "PaliGemmaTinyConfig",
        "PaliGemmaVLMConfig",
        "Qwen25VL",
        "Qwen25VLConfig",
        "Qwen3TinyConfig",
        "Qwen3VL",
        "Qwen3VLConfig",
        "TinyConfig",
    ]
    assert sorted(vla_vlm.__all__) == names
    assert all(hasattr(vla_vlm, name) for name in vla_vlm.__all__)
    code = "import sys, vla_vlm, vla_vlm.common.collator; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
