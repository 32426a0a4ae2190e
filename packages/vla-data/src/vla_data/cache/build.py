"""From a data set to its cached copy, which appears whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from vla_core.errors import ConfigError, UserError
from vla_core.ranges import Count, Range, check_ranges

from vla_data.cache.tables import scale_intrinsics, write_info, write_spec
from vla_data.cache.transcode import Difference, Encoding, transcode
from vla_data.formats.features import cameras
from vla_data.formats.info import FILE
from vla_data.formats.layout import SPEC_FILE, Layout
from vla_data.formats.opening import open_layout
from vla_data.formats.pictures import is_video
from vla_data.formats.tables import column_names
from vla_data.formats.video_checks import check_videos, one_size, scan_videos

NOTE = "meta/vla_cache.json"
"""What was done, in the copy."""
Size = Annotated[int, Range(low=16)]


@dataclass(frozen=True)
class CacheConfig:
    """How the copy's videos are.

    Args:
        height, width: in pixels, even; every camera gets this size, as by the transform ``resize``.
        gop: a key frame at least every so many frames; reading one frame decodes half of them on average.
        crf: x264's rate factor, 0 (lossless luma) to 51; lower is larger and truer.
        interpolation: the kernel of the resize, which should be that of the training's.
    """

    height: Size
    width: Size
    gop: Count = 4
    crf: Annotated[int, Range(low=0, high=51)] = 18
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        check_ranges(self, "--")
        for name in ("height", "width"):
            if getattr(self, name) % 2:
                raise ConfigError(f"--{name}: must be even for h264, is {getattr(self, name)}")


@dataclass(frozen=True)
class CacheReport:
    """What came out.

    Args:
        frames: of the data set.
        cameras: how many were transcoded.
        kept: cameras that are no videos, and were copied as they are.
        old_bytes, new_bytes: of the whole directories.
        error: mean absolute difference of the pixels from the resized originals, of 255.
        psnr: the same as peak signal-to-noise ratio in dB; infinite where all are equal.
    """

    frames: int
    cameras: int
    kept: tuple[str, ...]
    old_bytes: int
    new_bytes: int
    error: float
    psnr: float


def build_cache(
    path: str | Path,
    out: Path,
    config: CacheConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CacheReport:
    """Copy the data set at ``path`` to ``out``, with its videos transcoded and their intrinsics scaled.

    Frames, time stamps, states, actions, tasks and statistics stay; the copy has the source's version and
    is read by whatever reads that. It is made beside ``out``, checked and then renamed.

    Args:
        progress: called with the number of finished videos, and of all.

    Raises:
        UserError: no data set, no videos in it, broken ones, or ``out`` exists.
    """
    layout = open_layout(path)
    if out.exists():
        raise ConfigError(f"DST: {out} exists; name another directory, or remove it")
    if layout.root.resolve() in out.resolve().parents:
        raise ConfigError(f"DST: {out} lies inside of the data set; name a directory elsewhere")
    keys = [key for key in cameras(layout.features) if key not in layout.unlisted]
    videos = [key for key in keys if is_video(layout, key)]
    if not videos:
        raise UserError(f"{layout.root}: no camera is stored as video, so there is nothing to transcode")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name}.{os.getpid()}"
    try:
        difference = _fill(layout, draft, videos, config, progress)
        open_layout(draft)
        new_bytes = _size(draft)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    mean = difference.squared / difference.count
    return CacheReport(
        sum(len(e) for e in layout.episodes),
        len(videos),
        tuple(key for key in keys if key not in videos),
        _size(layout.root),
        new_bytes,
        difference.absolute / difference.count,
        10 * math.log10(255**2 / mean) if mean else math.inf,
    )


def _fill(
    layout: Layout, draft: Path, videos: list[str], config: CacheConfig, progress: Callable[[int, int], None]
) -> Difference:
    facts = scan_videos(layout, videos, layout.episodes)
    check_videos(layout, facts)
    files = [file for key in videos for file in facts[key]]
    left_out = {str(file) for file in files}
    sizes = {key: one_size(layout.root, key, facts[key]) for key in videos}

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if os.path.join(folder, n) in left_out or n in (".git", ".cache")]

    shutil.copytree(layout.root, draft, ignore=ignore)
    encoding = Encoding(**asdict(config))
    total = Difference()
    for done, file in enumerate(files):
        progress(done, len(files))
        total += transcode(file, draft / file.relative_to(layout.root), layout.fps, encoding)
    progress(len(files), len(files))
    _write_tables(layout, draft, sizes, encoding)
    note = {"from": layout.root.resolve().name, **asdict(config)}
    (draft / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return total


def _write_tables(layout: Layout, draft: Path, sizes: dict[str, tuple[int, int]], encoding: Encoding) -> None:
    write_info(draft / FILE, sizes, encoding)
    write_spec(draft / SPEC_FILE, sizes, encoding)
    named, intrinsics = layout.cameras(), layout.extras("intrinsics")
    scaled = {column: sizes[named[n]] for n, column in intrinsics.items() if named.get(n) in sizes}
    for data in dict.fromkeys(e.data for e in layout.episodes) if scaled else ():
        present = {c: size for c, size in scaled.items() if c in column_names(data)}
        file = draft / data.relative_to(layout.root)
        scale_intrinsics(file, present, (encoding.height, encoding.width))


def _size(root: Path) -> int:
    return sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
