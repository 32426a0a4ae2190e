"""``report.html`` of a rollout: one file, a row of last pictures a task, no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT = 72  # pixels of a thumbnail
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222 } table { border-collapse: collapse }
th, td { text-align: left; padding: 2px 10px; vertical-align: top } tr { border-bottom: 1px solid #ddd }
.grid { display: flex; flex-wrap: wrap; gap: 3px } .grid > * { border: 3px solid #c33; display: block }
.grid > .success { border-color: #3a3 } .grid > .error { border-color: #999 } .grid img { display: block }
figure { border: none !important; margin: 0 12px 12px 0; width: 320px }
video { width: 100%; max-height: 240px; background: #000 }
.none { width: 72px; height: 72px; background: #eee; font-size: 10px; overflow: hidden }
pre { white-space: pre-wrap } .made td + td { columns: 3 16em } .made i { color: #777; font-style: normal }
.made div { break-inside: avoid; overflow-wrap: anywhere } .made div div { margin-left: 1.5em }
"""


def thumbnail(frame: NDArray[np.uint8]) -> bytes:
    """A JPEG of ``[H, W, 3]``, :data:`HEIGHT` pixels high."""
    image = Image.fromarray(frame)
    image = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def name_of(task: str, seed: int) -> str:
    """File of an episode's thumbnail, below ``thumbnails``."""
    return f"{task.replace('/', '_')}_{seed}.jpg"


def _picture(out: Path, episode: Mapping[str, Any]) -> str:
    kind = "error" if episode["success"] is None else "success" if episode["success"] else "failure"
    said = escape(
        f"{episode['task']} seed {episode['seed']}: {episode['error'] or kind}, {episode['steps']} steps, "
        f'"{episode["instruction"]}"',
        quote=True,
    )
    file = out / "thumbnails" / name_of(episode["task"], episode["seed"])
    if not file.is_file():
        return f'<div class="none {kind}" title="{said}">{kind}</div>'
    data = base64.b64encode(file.read_bytes()).decode()
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{said}">'
    if episode.get("video"):
        return f'<a class="{kind}" title="{said}" href="videos/{quote(episode["video"])}">{image}</a>'
    return f'<div class="{kind}" title="{said}">{image}</div>'


def _videos(results: Mapping[str, Any]) -> str:
    """Players of the episodes that were filmed. No video is loaded before it is started; until then its
    episode's last picture is shown."""
    figures = [
        f'<figure><video controls loop muted poster="thumbnails/{quote(name_of(e["task"], e["seed"]))}" '
        f'preload="none" src="videos/{quote(e["video"])}"></video>'
        f"<figcaption>{escape(e['task'])} seed {e['seed']}: {'success' if e['success'] else 'failure'}<br>"
        f"{escape(e['instruction'] or '')}</figcaption></figure>"
        for e in sorted(results["episodes"], key=lambda e: e["success"] is True)
        if e.get("video")
    ]
    return f'<h2>Videos</h2><div class="grid">{"".join(figures)}</div>' if figures else ""


def _said(value: Any) -> str:
    """A setting in words: what a mapping holds is a line each, and what is not set is left out."""
    if isinstance(value, Mapping):
        items = [(str(key), _said(held)) for key, held in value.items()]
        return "".join(f"<div><i>{escape(key)}</i> {held}</div>" for key, held in items if held)
    if isinstance(value, (list, tuple)):
        words = [word for word in map(_said, value) if word]
        return "".join(words) if any(isinstance(held, Mapping) for held in value) else ", ".join(words)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else escape(str(value))


def page(results: Mapping[str, Any], out: Path, summary: str) -> str:
    """The page; ``summary`` is the printed table."""
    rows = []
    for node in results["tasks"]:
        episodes = [e for e in results["episodes"] if e["task"] == node["task"]]
        low, high = (round(100 * bound) for bound in node["interval"])
        pictures = "".join(_picture(out, episode) for episode in episodes)
        rows.append(
            f"<tr><td>{escape(node['task'])}</td><td>{node['successes']}/{node['episodes']}<br>"
            f'{low}-{high} %</td><td><div class="grid">{pictures}</div></td></tr>'
        )
    made = {"settings": results["settings"], "policy": results["policy"], **results.get("provenance", {})}
    words = {key.replace("_", " "): _said(value) for key, value in made.items()}
    facts = "".join(f"<tr><td>{escape(key)}</td><td>{held}</td></tr>" for key, held in words.items() if held)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Rollout</title><style>{_STYLE}</style>'
        f"<h1>Rollout</h1><pre>{escape(summary)}</pre>"
        "<p>The last picture of every episode: green succeeded, red did not, grey did not run to its end.</p>"
        "<table><tr><th>task</th><th>success, 95 %</th><th>episodes</th></tr>"
        f"{''.join(rows)}</table>{_videos(results)}"
        f'<h2>Made with</h2><table class="made">{facts}</table></html>\n'
    )


def write(results: Mapping[str, Any], out: Path, summary: str) -> Path:
    """Write ``report.html`` into ``out``; returns its path."""
    path = out / "report.html"
    path.write_text(page(results, out, summary), "utf-8")
    return path
