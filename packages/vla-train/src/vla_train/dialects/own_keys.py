"""The keys of this project's config, which a dialect tells its own from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OwnKeys:
    """Names, and nothing that they stand for: a dialect reads words and needs no torch.

    Args:
        top: keys of the whole config.
        sections: name of a section that is validated key by key -> its keys.
    """

    top: Collection[str]
    sections: Mapping[str, Collection[str]]

    def has(self, key: str) -> bool:
        """Whether a dotted key is (or lies below) a key of this project."""
        head, _, rest = key.partition(".")
        if head not in self.sections:
            return head in self.top
        return not rest or rest.split(".")[0] in self.sections[head]
