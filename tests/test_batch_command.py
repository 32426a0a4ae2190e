"""``vla-data batch``: the printed and drawn batch is the one that training reads at that step."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import vla_data.other_commands as others
from PIL import Image
from vla_core.config import build_config
from vla_data.cli import main
from vla_train.augment import Augmentation
from vla_train.batch_view import page, take, text
from vla_train.batch_view.taken import Line
from vla_train.composition import compose
from vla_train.config import RunConfig
from vla_train.dataloading.robot_data import RobotData
from vla_train.engine import make_engine
from vla_train.spellings import load_run

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "configs/quickstart.yaml", ROOT / "configs/mixture.yaml"]
WORDS = [
    "trainer.batch_size=6",
    "trainer.gradient_accumulation_steps=2",
    "datasets.mixtures.two_robots.0.episodes='0:6'",
    "datasets.mixtures.two_robots.1.episodes='0:6'",
    "datasets.augmentation.brightness=0.3",
]
PNG = re.compile(r"src='data:image/png;base64,([^']+)'")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_it_is_the_batch_of_that_step(tmp_path: Path) -> None:
    words = [*WORDS, f"run_root_dir={tmp_path}"]
    taken = take(load_run(FILES, words), index=5, most=6)
    # As the trainer reads it: its third step's second micro-batch.
    tree = load_run(FILES, words)
    config = build_config(RunConfig, tree.data, "", tree)
    composed, engine = compose(tree, config), make_engine(config.trainer)
    data = RobotData(composed, composed.model)
    feed = data.feed(None, engine=engine, seed=config.seed, workers=0)
    batch = [feed.step() for _ in range(3)][2][1]
    batch = Augmentation(config.datasets.augmentation, config.seed, 0)(batch, 3, 1)
    assert (taken.step, taken.size, len(taken.rows)) == (3, 6, 6)
    assert sum(taken.counts.values()) == 6
    drawn = [Image.open(io.BytesIO(base64.b64decode(code))) for code in PNG.findall(page(taken))]
    pictures = iter(drawn)
    robots = set()
    for i, row in enumerate(taken.rows):
        assert row.label == data.labels[int(batch.source[i])]
        robots.add(row.embodiment)
        for v, image in enumerate(row.views.values()):
            assert (image is not None) == bool(batch.view_mask[i, v])
            if image is not None:
                assert np.array_equal(image, batch.images[i, v].permute(1, 2, 0).numpy())
                assert np.array_equal(np.array(next(pictures)), image)
        whole = np.concatenate([part.values for part in row.model_action], axis=1)
        assert np.array_equal(whole, batch.actions[i].numpy())
        assert np.array_equal(row.mask, batch.action_mask[i].numpy())
        # What was recorded is what un-normalising gives, q99's clipping aside.
        assert row.apart < (1e-5 if row.embodiment == "sawyer" else 3.0)
        assert row.instruction in row.prompt
        assert "<image x 16>" in row.prompt
        source = composed.data.sets[int(batch.source[i])].train
        first = next(j for j in range(len(source)) if source.episode(j) == row.episode)
        state, actions, _ = source.numeric(first + row.frame)
        assert np.array_equal(np.concatenate([part.values for part in row.state]), state)
        assert np.array_equal(np.concatenate([part.values for part in row.action], axis=1), actions)
    assert robots == {"sawyer", "one_camera"}
    said = text(taken)
    assert "missing" in said
    assert "after datasets.augmentation" in said


def test_the_program_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "batch.html"
    words = ["batch", "--config", str(FILES[0]), "--out", str(out), "--rows", "2", "--seed", "4"]
    more = ["trainer.batch_size=3", "datasets.train.0.episodes='0:3'", f"run_root_dir={tmp_path}"]
    assert main([*words, *more]) == 0
    said = capsys.readouterr().out
    assert "batch 0 of the first process (step 1), seed 4: 3 rows" in said
    assert re.search(r"^images +uint8 +3 x 2 x 3 x 64 x 64 +\d+ +\d+$", said, re.MULTILINE)
    assert re.search(r"recorded .* \(cm\)", said)
    assert said.count("row 0:") == said.count("row 1:") == 1
    assert "row 2:" not in said
    assert out.read_text().count("<section>") == 2


def test_a_run_says_what_its_data_say(tmp_path: Path) -> None:
    robot = tmp_path / "robot.yaml"
    robot.write_text("embodiment: slow\ncontrol_hz: 40\naction: [{name: all, key: action}]\n")
    words = [
        f"datasets.train.0.robot={robot}",
        "datasets.train.0.cache=none",
        "datasets.train.0.episodes='0:3'",
    ]
    more = [f"run_root_dir={tmp_path}", "trainer.evaluation.tasks=[]"]
    composed = compose(load_run(FILES[:1], [*words, *more]), device="meta")
    assert any(
        "data set metaworld_faucet: " in note and "0.5 times as fast" in note for note in composed.notes
    )


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(FILES[0])]
    for words, said in (
        ([*config, "--index", "-1"], "--index: must be at least 0"),
        ([*config, "--out", "batch.png"], "must end in .html"),
        ([*config, "trainer.batch_sise=3"], "did you mean 'batch_size'"),
        (["--config", "trainer.batch_size=3"], "--config: name a file"),
        (["--config", str(ROOT / "configs/cotrain_tiny.yaml"), "trainer.job=vlm"], "conversations alone"),
        ([*config, "datasets.train.0.path=nowhere"], "no such dataset directory"),
    ):
        assert main(["batch", *words]) == 2, words
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_without_the_package_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "entry_points", lambda group: ())
    assert main(["batch", "--config", "x.yaml", "--help"]) == 2
    error = capsys.readouterr().err
    assert error == "vla-data batch: this command needs the package vla-train: pip install vla-train\n"


def test_whole_numbers_have_all_their_digits() -> None:
    assert Line("index", "int64", (8,), 2567.0, 10234.0, None).ends == ("2567", "10234")
    assert Line("state", "float32", (8, 4), -1.33912, 10234.56, None).ends == ("-1.339", "1.023e+04")
