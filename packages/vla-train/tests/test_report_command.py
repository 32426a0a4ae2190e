"""``vla-train report``: the page of a run made again, also of one that was killed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vla_train.cli import main


def killed(run: Path) -> Path:
    """A run of which nothing is left but its metrics, the last line cut short."""
    run.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in range(1, 51)]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 60, "lo']))
    return run


def test_the_command_adds_rollouts_run_by_hand_to_a_killed_run(tmp_path, capsys):
    run = killed(tmp_path / "runs" / "killed")
    for name, second in (("plain", True), ("heldout", False)):
        videos = tmp_path / "by hand" / name / "videos"
        videos.mkdir(parents=True)
        (videos / "left_2.mp4").write_bytes(b"")
        said = [("go left", True, None), ("to the left", second, "left_2.mp4")]
        nodes = [
            {"task": "left", "seed": i + 1, "success": ok, "instruction": text, "video": video}
            for i, (text, ok, video) in enumerate(said)
        ]
        (videos.parent / "results.json").write_text(json.dumps({"episodes": nodes}))
    by_hand = [str(tmp_path / "by hand" / name) for name in ("plain", "heldout")]
    assert main(["report", str(run), "--rollout", by_hand[0], "--rollout", by_hand[1]]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    section = re.search(r'<section id="closed-loop".*?</section>', page, re.DOTALL)
    assert section is not None
    loop = re.sub(r"<[^>]*>", "", section[0])
    assert loop.index("../../by hand/plain") < loop.index("../../by hand/heldout")
    assert "2 of 2" in loop
    assert loop.count("Success per phrasing (2)") == 2
    assert "0 of 1" in loop[loop.index("heldout") :]
    assert "0 of 1" not in loop[: loop.index("heldout")]
    assert 'href="../../by%20hand/heldout/videos/left_2.mp4"' in page


def test_the_command_says_what_is_not_there(tmp_path, capsys):
    run = killed(tmp_path / "run")
    assert main(["report", str(run), "--rollout", str(tmp_path)]) == 2
    assert "has no results.json; give a directory that vla-rollout --out wrote" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "report: the following arguments are required: RUN" in capsys.readouterr().err
