"""Fixtures shared by the tests; hypothesis runs the same examples every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "package",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("package")


@pytest.fixture(autouse=True)
def _one_thread():
    """A tiny tensor gains nothing from threads, and tests of several packages may run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write(tmp_path: Path):
    """``write("a.yaml", text)`` gives the path of a new file."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


@pytest.fixture
def fakes():
    """``fake`` names a backbone and a head while the test runs."""
    from vla_core.testing import register_fakes

    with register_fakes():
        yield
