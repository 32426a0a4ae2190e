"""``vla-train fit-fast``, and the tokenizer of a run that goes on from another's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from vla_heads.fast import ActionTokenizer
from vla_train.cli import main
from vla_train.composition import compose
from vla_train.presets import load_run_tree

TINY = {
    "base_vlm": "tiny",
    "prompt": "{prefix}{images}{instruction}{suffix}{queries}",
    "max_text_tokens": 24,
    "tiny": {"hidden_size": 32, "n_layers": 1, "n_heads": 2, "intermediate_size": 32, "vision_depth": 1},
}


@pytest.fixture
def config(toy_config: Path) -> Path:
    """The toy run with the preset QwenFast at size tiny."""
    data: dict[str, Any] = yaml.safe_load(toy_config.read_text())
    data["framework"] = {
        "name": "QwenFast",
        "horizon": 4,
        "vlm": TINY,
        "head": {"vocab_size": 300},
        "transforms": [{"name": "normalize", "action": "min_max"}],
    }
    path = toy_config.parent / "fast.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_it_writes_what_the_run_itself_would_fit(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer"
    assert main(["fit-fast", "--config", str(config), "--out", str(out), "framework.head.scale=20"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith("training")}
    assert "held out" in printed
    tokenizer = ActionTokenizer.load(out, 4, 2)
    assert tokenizer.scale == 20
    policy = compose(load_run_tree([config], ["framework.head.scale=20"])).policy
    fitted = cast(Any, policy.model.head).answer.tokenizer
    assert fitted.bpe.to_str() == tokenizer.bpe.to_str()
    given = compose(load_run_tree([config], [f"framework.head.tokenizer={out}"])).policy
    assert cast(Any, given.model.head).answer.tokenizer.scale == 20
    assert given.config["head"]["tokenizer"] == str(out)
    # The constant chunks of the toy robot: first coefficients alone, and an error within the rounding.
    _, chunks, tokens, longest, ratio, error, largest, clipped, _ = rows["training"]
    assert int(chunks) == 50
    assert float(tokens) <= int(longest) < 8
    assert float(ratio) == pytest.approx(8 / float(tokens), rel=0.05)
    assert 0 < float(error) <= float(largest) <= np.sqrt(4) / 40
    assert clipped == "0.00%"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config and --out are needed"),
        (["--out"], "expected one argument"),
        (
            ["framework.head.name=mlp_regression"],
            "framework.head is 'mlp_regression', which speaks no tokens",
        ),
        (["framework.head.tokenizer=there"], "leave it out to fit another"),
        (["framework.head.scale=0"], "scale': must be > 0"),
        (["framework.head.scale=1e5"], "lower it, or normalise actions"),
        (["framework.head.scal=1"], "did you mean 'scale'?"),
    ],
)
def test_mistakes_are_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    given = ["--config", str(config), *words]
    if words and words != ["--out"]:
        given.append(f"--out={tmp_path / 'new'}")
        if "mlp_regression" in words[0]:  # whose keys are others
            config.write_text(config.read_text().replace("    vocab_size: 300\n", "    use_state: false\n"))
    assert main(["fit-fast", *given]) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    assert message in err
    assert not (tmp_path / "new").exists()


def test_it_overwrites_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-fast", "--config", str(config), "--out", str(tmp_path)]) == 2
    assert "exists already; choose another --out" in capsys.readouterr().err


def scale_of(config: Path, *words: str) -> float:
    head: Any = compose(load_run_tree([config], words)).policy.model.head
    return float(head.answer.tokenizer.scale)


def test_the_tokenizer_stays_with_the_weights(config: Path, tmp_path: Path) -> None:
    """Fitted with another scale, so that it can be told from one that is fitted anew."""
    first = compose(load_run_tree([config], ["framework.head.scale=25"])).policy
    root = tmp_path / "runs"
    checkpoint = first.save(root / "old" / "checkpoints" / "steps_3", step=3)
    assert scale_of(config) == 10
    start = f"trainer.pretrained_checkpoint={checkpoint}"
    assert scale_of(config, start) == 25
    assert scale_of(config, start, "trainer.reload_modules=[vlm]") == 25
    assert scale_of(config, start, "trainer.reload_modules=[vlm.model.visual]") == 10
    resume = (f"run_root_dir={root}", "run_id=old", "trainer.resume=true")
    assert scale_of(config, *resume) == 25
    shutil.copytree(checkpoint / "assets" / "head", tmp_path / "mine")
    file = tmp_path / "mine" / "processor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scale": 30}))
    mine = f"framework.head.tokenizer={tmp_path / 'mine'}"
    assert scale_of(config, mine) == 30
    assert scale_of(config, start, mine) == 30
    assert scale_of(config, *resume, mine) == 25
