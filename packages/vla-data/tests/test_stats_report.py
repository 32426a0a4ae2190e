"""``vla-data stats``: every injected fault is named with its place, and sound data has none."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_data.cli import main
from vla_data.facts import Report, describe_numbers

LENGTHS = (300, 280, 320)
EPISODES = np.repeat(np.arange(3), LENGTHS)


def smooth(dims: int, seed: int = 0) -> np.ndarray:
    """Slow movement without a single thing to complain about."""
    rng = np.random.default_rng(seed)
    t = np.arange(len(EPISODES))[:, None]
    phase, speed = rng.uniform(0, 6, dims), rng.uniform(0.02, 0.05, dims)
    return (np.sin(phase + speed * t) + 0.3 * np.sin(2.7 * speed * t)).astype(np.float32)


def spec(states: int, actions: int) -> RobotSpec:
    return RobotSpec(
        ObservationSpec((CameraSpec("top", 8, 8),), (GroupSpec("joints", states, "rad"),)),
        ActionSpec((GroupSpec("target", actions, "rad"),), 1, 20.0),
    )


def report(states: np.ndarray, actions: np.ndarray, episodes: np.ndarray = EPISODES) -> Report:
    return describe_numbers("toy", spec(states.shape[1], actions.shape[1]), states, actions, episodes)


def test_sound_data_has_no_facts() -> None:
    assert list(report(smooth(3), smooth(2, 1)).all_facts()) == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("constant", "action target[0] (rad): constant (0.5); it carries nothing"),
        ("dead", "action target[0] (rad): dead: it differs between episodes and never changes within one"),
        ("gripper", "action target[0] (rad): takes three values (-1, 0, 1)"),
        ("nan", "action target[0] (rad): 2 frames hold NaN or infinity, the first in episode 1, frame 7"),
        ("outlier", "action target[0] (rad): 1 outlier, the farthest 80 in episode 2, frame 11"),
        ("jump", "action target[0] (rad): 1 jump,"),
        ("wrap", "by a whole turn: an angle that wraps"),
        ("clipped", "of the frames are exactly at -0.8 or 0.8: clipped when recorded?"),
        ("copied", "actions are equal to the state of the same frame"),
        ("next", "actions are equal to the state of the next frame"),
        ("short", "episodes 7 are shorter than a fifth of the median"),
    ],
)
def test_each_fault_is_named(fault: str, expected: str) -> None:
    states, actions, episodes = smooth(2), smooth(2, 1), EPISODES.copy()
    column = actions[:, 0]
    if fault == "constant":
        column[:] = 0.5
    elif fault == "dead":
        column[:] = EPISODES
    elif fault == "gripper":
        column[:] = np.arange(len(column)) // 40 % 3 - 1
    elif fault == "nan":
        column[300 + 7], column[300 + 90] = np.nan, np.inf
    elif fault == "outlier":
        column[580 + 11] = 80
    elif fault == "jump":
        column[100:300] += 5
    elif fault == "wrap":
        column[:] = (0.015 * np.arange(len(column)) + np.pi) % (2 * np.pi) - np.pi
    elif fault == "clipped":
        np.clip(column, -0.8, 0.8, out=column)
    elif fault == "copied":
        states[:] = actions
    elif fault == "next":
        states[1:] = actions[:-1]
    elif fault == "short":
        episodes[-10:] = 7
    assert any(expected in fact for fact in report(states, actions, episodes).all_facts())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), frames=st.integers(1, 40))
def test_any_numbers_are_described(data: st.DataObject, frames: int) -> None:
    """No number breaks it, and every finite frame is in the histogram once."""
    values = st.floats(width=32, allow_nan=True, allow_infinity=True)
    column = data.draw(st.lists(values, min_size=frames, max_size=frames))
    actions = np.array(column, np.float32)[:, None]
    found = describe_numbers("toy", spec(1, 1), None, actions, np.zeros(frames, np.int64))
    (dim,) = found.dims
    finite = np.isfinite(actions)
    assert sum(dim.counts) == max(1, int(finite.sum()))
    assert any("NaN" in fact for fact in dim.facts) == (not finite.all())


def write(root: Path, actions: np.ndarray) -> None:
    root.mkdir()
    np.save(root / "observation.state.npy", smooth(2))
    np.save(root / "action.npy", actions)
    np.save(root / "observation.images.top.npy", np.zeros((len(actions), 8, 8, 3), np.uint8))
    episodes = [{"frames": n, "instruction": "go"} for n in LENGTHS]
    meta = {"format": 1, "spec": spec(2, 2).to_dict(), "episodes": episodes}
    (root / "arrays.json").write_text(json.dumps(meta))


class Tags(HTMLParser):
    """Every tag that opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    actions = smooth(2, 1)
    actions[20, 1] = np.nan
    write(tmp_path / "set<1>", actions)
    page = tmp_path / "out" / "report.html"
    assert main(["stats", str(tmp_path / "set<1>"), "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert "suspicious (1)" in out
    assert "action target[1] (rad): 1 frame holds NaN or infinity, the first in episode 0, frame 20" in out
    html = page.read_text()
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    assert tags.seen.count("svg") == 4
    assert "set&lt;1&gt;" in html
    assert "NaN or infinity, the first in episode 0, frame 20" in html
    assert "http" not in html  # nothing is loaded from elsewhere


def test_a_lerobot_data_set(write_lerobot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_lerobot(tmp_path / "toy", cameras=("observation.images.top",), size=32)
    assert main(["stats", str(root)]) == 0
    out = capsys.readouterr().out
    assert "toy: robot toy, 20 Hz, 3 episodes, 34 frames" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["stats", "DIR", "--report", "x.pdf"], "--report: x.pdf must end in .html"),
        (["stats", "DIR", "more"], "unknown argument 'more'"),
        (["stats", "DIR/none"], "none"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], expected: str) -> None:
    write(tmp_path / "set", smooth(2, 1))
    words = [word.replace("DIR", str(tmp_path / "set")) for word in argv]
    assert main(words) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert expected in err[0]
