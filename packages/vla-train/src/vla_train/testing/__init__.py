"""A preset at small or true size for a made-up robot, its stages seen from outside: for tests and tools."""

from __future__ import annotations

from vla_train.testing.sizes import CAMERA, GEOMETRY_IMAGE, TINY, Size, framework_tree

__all__ = ["CAMERA", "GEOMETRY_IMAGE", "TINY", "Size", "framework_tree"]
