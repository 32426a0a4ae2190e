"""Scanned videos against the metadata: does every listed frame have its picture, and at its time?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from vla_core.errors import UserError

from vla_data.errors import BadDataError
from vla_data.formats.info import FILE
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.pictures import Pictures, is_video
from vla_data.formats.scan import VideoFacts, scan_all
from vla_data.formats.video import oddities_of

_OFF = 0.25
"""How far from its place a frame may be, in frames: two neighbours cannot be mistaken for each other."""


def scan_videos(
    layout: Layout, keys: Sequence[str], episodes: Sequence[Episode]
) -> dict[str, dict[Path, VideoFacts]]:
    """Camera feature -> the scanned files that ``episodes`` need of it."""
    videos = [key for key in keys if is_video(layout, key)]
    files = {key: [e.videos[key][0] for e in episodes if key in e.videos] for key in videos}
    facts = scan_all(layout.root, [file for key in videos for file in files[key]])
    return {key: {file: facts[file] for file in dict.fromkeys(files[key])} for key in videos}


def problems(layout: Layout, key: str, facts: dict[Path, VideoFacts]) -> Iterator[str]:
    """What is wrong with the scanned files of one camera feature, a line each.

    All episodes that lie in a file count, also those that were not chosen: a frame that is lost shifts
    whatever comes after it.
    """
    inside: dict[Path, list[Episode]] = {file: [] for file in facts}
    for episode in layout.episodes:
        if key in episode.videos and episode.videos[key][0] in inside:
            inside[episode.videos[key][0]].append(episode)
    for file, fact in facts.items():
        problem = fact.problem or _problem(layout, key, fact, inside[file])
        if problem:
            yield f"{file}: {problem}"


def check_videos(layout: Layout, facts: dict[str, dict[Path, VideoFacts]]) -> None:
    """Raise BadDataError with the first problem."""
    for key, files in facts.items():
        found = list(problems(layout, key, files))
        if found:
            more = f" (and {len(found) - 1} more; see vla-data doctor)" if len(found) > 1 else ""
            raise BadDataError(f"{layout.root}: {found[0]}{more}")


def camera_sizes(
    pictures: Pictures,
    cameras: Mapping[str, str],
    videos: Mapping[str, Mapping[Path, VideoFacts]],
    first: Episode,
    row: int,
) -> dict[str, tuple[int, int]]:
    """Camera -> (H, W) of its files, whatever the info says.

    Args:
        pictures: of the data set.
        cameras: name -> feature.
        videos: as :func:`scan_videos` gives them.
        first, row: an episode and the row of its first frame, whose picture tells where there is no video.

    Raises:
        UserError: the files of a camera differ.
    """
    found = {}
    for name, key in cameras.items():
        if key in videos:
            found[name] = one_size(pictures.root, key, videos[key])
        else:
            high, wide, _ = pictures.read(key, first, 0, row).shape
            found[name] = int(high), int(wide)
    return found


def check_depth_sizes(
    root: Path,
    cameras: Mapping[str, tuple[int, int]],
    depth: Mapping[str, str],
    videos: Mapping[str, Mapping[Path, VideoFacts]],
) -> None:
    """Raise UserError where the depth video of a camera (name -> feature) is not as large as its pictures."""
    for name, key in depth.items():
        high, wide = one_size(root, key, videos[key])
        if (high, wide) != cameras[name]:
            own = cameras[name]
            raise UserError(
                f"{root}: '{key}' has depth maps of {wide} x {high}, and camera '{name}' pictures of "
                f"{own[1]} x {own[0]}; depth must be registered to the pictures: set depth: false"
            )


def odd_looks(videos: Mapping[str, Mapping[Path, VideoFacts]]) -> Iterator[str]:
    """Lines about cameras whose first file says that players turn its pictures, or has colours of HDR."""
    for file in (next(iter(files)) for files in videos.values()):
        for odd in oddities_of(file):
            yield f"{file}: {odd}"


def one_size(root: Path, key: str, facts: Mapping[Path, VideoFacts]) -> tuple[int, int]:
    """(H, W) of all files of a camera feature; UserError where they differ."""
    sizes = {(f.height, f.width): file for file, f in facts.items()}
    if len(sizes) > 1:
        (a, one), (b, other) = list(sizes.items())[:2]
        raise UserError(
            f"{root}: '{key}' has pictures of {a[1]} x {a[0]} ({one}) and {b[1]} x {b[0]} ({other}); "
            "a camera has one size: leave those episodes out"
        )
    return next(iter(sizes))


def _problem(layout: Layout, key: str, fact: VideoFacts, episodes: Sequence[Episode]) -> str | None:
    fps, seconds = layout.fps, fact.seconds()
    if not len(seconds):
        return "holds no frames"
    places = seconds * fps
    numbers = np.round(places).astype(np.int64)
    steps = np.diff(seconds)
    rate = 1 / float(np.median(steps)) if len(steps) and np.median(steps) > 0 else fps
    if abs(rate / fps - 1) > 0.02 and len(steps) > 1:
        return f"its frames come at {rate:.6g} Hz, {FILE} says {fps:g} Hz; correct fps there"
    late = float(np.abs(places - numbers).max())
    if late > _OFF or len(np.unique(numbers)) < len(numbers):
        odd = int(np.abs(places - numbers).argmax())
        return (
            f"frame {odd} stands at {seconds[odd]:.4f} s, which is no multiple of 1/{fps:g} s; re-encode the "
            "video at a constant rate"
        )
    listed = sum(len(e) for e in episodes)
    if int(numbers[0]) > 0 and len(numbers) >= listed and np.all(np.diff(numbers) == 1):
        return (
            f"its first frame stands at {seconds[0]:.4f} s instead of 0, so that every picture would be "
            f"{int(numbers[0])} frames late; rewrite its time stamps"
        )
    for episode in episodes:
        _, start, stop = episode.videos[key]
        first = round(start * fps)
        wanted = first + np.arange(len(episode))
        at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        lacking = wanted[numbers[at] != wanted]
        if len(lacking):
            return (
                f"lacks {len(lacking)} of the {len(episode)} frames of episode {episode.index} (the first is "
                f"frame {lacking[0] - first}): it holds {len(numbers)} frames, the metadata lists {listed}"
            )
        if stop is not None and abs((stop - start) * fps - len(episode)) > 1:
            return (
                f"episode {episode.index} has {len(episode)} frames, and its from_timestamp and to_timestamp "
                f"({start:g} s, {stop:g} s) span {(stop - start) * fps:.1f}"
            )
    return None


class Surplus(NamedTuple):
    """How many frames a file holds, and how many of them the metadata lists; fewer."""

    frames: int
    listed: int

    def __str__(self) -> str:
        return f"holds {self.frames} frames, the metadata lists {self.listed}"


def surplus(layout: Layout, key: str, facts: dict[Path, VideoFacts]) -> Iterator[tuple[Path, Surplus]]:
    """Files with more frames than the metadata lists: nothing reads them, but somebody wrote them."""
    listed: dict[Path, int] = dict.fromkeys(facts, 0)
    for episode in layout.episodes:
        if key in episode.videos and episode.videos[key][0] in listed:
            listed[episode.videos[key][0]] += len(episode)
    for file, fact in facts.items():
        count = sum(n for _, _, n in fact.stamps)
        if fact.problem is None and count > listed[file]:
            yield file, Surplus(count, listed[file])
