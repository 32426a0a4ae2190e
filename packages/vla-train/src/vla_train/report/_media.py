"""Pictures and videos inside the page, so that it can be sent alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from vla_train.report._page import Markup, join, tag
from vla_train.report._rollout import ReportedEpisode, Rollout
from vla_train.report._run import Seen

BUDGET = 6_000_000
"""Bytes of a rollout's videos that are put into the page; the others are linked."""
SHOWN = 8


def picture(image: NDArray[np.uint8], text: str) -> Markup:
    """``[H, W, 3]`` as an element of its own, pixel by pixel."""
    from matplotlib.image import imsave  # half a second, and whoever trains imports this module

    buffer = io.BytesIO()
    imsave(buffer, image, format="png", metadata={"Software": ""})
    data = base64.b64encode(buffer.getvalue()).decode()
    return tag("img", src=f"data:image/png;base64,{data}", alt=text, title=text)


def seen_grid(samples: Sequence[Seen]) -> Markup:
    """A figure a sample, its cameras side by side."""
    figures = []
    for sample in samples:
        views = [
            picture(image, f"{camera}, {image.shape[0]} x {image.shape[1]} pixels")
            for camera, image in sample.images.items()
        ]
        where = f"{sample.label}, episode {sample.episode}, frame {sample.frame}"
        caption = tag("figcaption", tag("b", sample.instruction), tag("span", where, class_="note"))
        figures.append(tag("figure", tag("div", *views, class_="views"), caption, class_="seen"))
    return tag("div", *figures, class_="gallery")


def _chosen(rollout: Rollout) -> Iterator[ReportedEpisode]:
    """Failures of each task in turn, then what succeeded: a few of everything come first."""
    filmed = [e for e in rollout.episodes if e.video]
    rank = {id(e): sum(o.task == e.task for o in filmed[:i]) for i, e in enumerate(filmed)}
    yield from sorted(filmed, key=lambda e: (e.success is True, rank[id(e)]))


def video_gallery(rollout: Rollout) -> Markup | None:
    """The first videos as players; None without any. They lie in the page as far as :data:`BUDGET` goes."""
    figures, left = [], BUDGET
    for episode in list(_chosen(rollout))[:SHOWN]:
        assert episode.video is not None
        source = f"{rollout.name}/videos/{episode.video}"
        file = None if rollout.folder is None else rollout.folder / "videos" / episode.video
        player, left = _player(source, file, left)
        kind = "success" if episode.success else "failure"
        text = f"{episode.task}, seed {episode.seed}: {kind}"
        if episode.steps is not None:
            text += f" after {episode.steps} steps"
        said = tag("span", episode.instruction, class_="note")
        figures.append(tag("figure", player, tag("figcaption", tag("b", text), said), class_="film"))
    return tag("div", *figures, class_="gallery") if figures else None


def _player(source: str, file: Path | None, left: int) -> tuple[Markup, int]:
    size = file.stat().st_size if file is not None and file.is_file() else 0
    link = quote(source)
    if file is not None and 0 < size <= left:
        link = f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}"
        left -= size
    fallback = tag("a", source.rpartition("/")[2], href=quote(source))
    player = tag("video", fallback, src=link, controls="", muted="", loop="", preload="metadata")
    return player, left


def links(rollout: Rollout, names: Sequence[str]) -> Markup:
    """Links to videos beside the results."""
    hrefs = (tag("a", name, href=quote(f"{rollout.name}/videos/{name}")) for name in names)
    return join(hrefs, Markup(", "))
