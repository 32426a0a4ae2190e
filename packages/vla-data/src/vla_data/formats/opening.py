"""A directory to a :class:`~vla_data.formats.layout.Layout`, by the version that its ``info.json`` states."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from vla_core.errors import UserError

from vla_data._names import check_unique
from vla_data.formats import features, v2, v3
from vla_data.formats.info import FILE, find, read_info, version
from vla_data.formats.layout import Layout

_READERS = {2: v2.read, 3: v3.read}


def open_layout(path: str | Path) -> Layout:
    """Read the metadata of the dataset at ``path`` (a directory, or a hub id with a local copy).

    Raises:
        UserError: no dataset there, of an unknown version, or with metadata that contradicts itself.
    """
    root = find(path)
    info = read_info(root)
    layout = _READERS[version(info)](root, info)
    check_unique(
        ((name, key) for key, name in features.cameras(layout.features).items()), root / FILE, "cameras"
    )
    index, times = Counter(e.index for e in layout.episodes).most_common(1)[0]
    if times > 1:
        raise UserError(f"{root}: episode {index} is listed {times} times in meta/episodes; keep one")
    for episode in layout.episodes:
        if len(episode) <= 0:
            raise UserError(f"{root}: episode {episode.index} has {len(episode)} frames in its metadata")
    return layout
