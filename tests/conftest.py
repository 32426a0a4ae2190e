"""Tiny policies on the shipped demonstrations, for the tests that cross package borders."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib
import torch
import yaml
from vla_core.images import resize
from vla_core.testing.logs import own_log
from vla_data._arrays_writer import ArraysWriter
from vla_data._demonstrate import Demonstration, DemonstrationJob
from vla_data.lerobot import LeRobotConfig, LeRobotSource

ROOT = Path(__file__).parents[1]
DATASET = ROOT / "examples" / "data" / "metaworld_faucet"
EXTENDING = ROOT / "examples" / "extending"
SMALL = 64


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard() -> None:
    """What a shell starts with ``&`` ignores Ctrl-C, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def shrink(config: dict[str, Any], out: Path) -> dict[str, Any]:
    """The same config for a run of a few seconds."""
    config["datasets"]["train"][0].update(path=str(DATASET), cache="none")
    config["datasets"]["ram_cache"] = False
    config["trainer"].update(max_steps=3, batch_size=2, warmup_steps=1, val_every=0, val_samples=4)
    # One thread also in processes of its own: sums on two are split, and so rounded, differently.
    config["trainer"].update(device="cpu", threads=1, evaluation={"tasks": []}, log_every=1)
    config.update(run_root_dir=str(out / "runs"), run_id="tiny")
    return config


@pytest.fixture(scope="module")
def my_parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory like ``site-packages`` after the package of examples/extending was installed into it."""
    site = tmp_path_factory.mktemp("site")
    for file in EXTENDING.glob("*.py"):
        shutil.copy(file, site)
    metadata = site / "somebodys_parts-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-parts\nVersion: 0.1\n")
    groups = tomllib.loads((EXTENDING / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", str(site))  # for programs that the tests start
        yield site


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with own_log():
        yield


@pytest.fixture
def quickstart(tmp_path: Path) -> dict[str, Any]:
    """The shrunk quickstart config."""
    return shrink(yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text()), tmp_path)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on two threads, and bit-equality must not depend on the split."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_faucet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped demonstrations as arrays of 64 x 64 images: decoded once for all that learn from them."""
    return write_small(tmp_path_factory.mktemp("data") / "small_faucet")


def write_small(root: Path) -> Path:
    """Write the dataset ``root`` (see :func:`small_faucet`)."""
    source = LeRobotSource(LeRobotConfig(str(DATASET), cache="ram"), 1)
    cameras = tuple(replace(c, height=SMALL, width=SMALL) for c in source.spec.observation.cameras)
    spec = replace(source.spec, observation=replace(source.spec.observation, cameras=cameras))
    writer, start = None, 0
    for episode, frames in source.lengths().items():
        samples = [source[i] for i in range(start, start + frames)]
        start += frames
        columns = {
            f"observation.images.{c.name}": np.stack(
                [resize(s.observation.images[c.name], SMALL, SMALL) for s in samples]
            )
            for c in cameras
        }
        columns["observation.state"] = np.stack([s.observation.state for s in samples])
        columns["action"] = np.stack([s.actions[0] for s in samples])
        job = DemonstrationJob("metaworld", (), episode, 0.0)
        shown = Demonstration(job, True, samples[0].observation.instruction, columns, columns["action"])
        writer = writer or ArraysWriter(root, spec, shown, "small_faucet")
        writer.add(shown)
    assert writer is not None
    writer.close({"source": DATASET.name})
    return root
