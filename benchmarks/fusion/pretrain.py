"""Pre-trains the small geometry encoder on depth and multi-view correspondence.

    uv run python benchmarks/fusion/pretrain.py --data runs/fusion/pretrain --out encoder.safetensors

The data set is one of ``vla-data record --format arrays`` with two cameras, depth, intrinsics and extrinsics;
all of it goes to the device. On a GPU a whole step is one CUDA graph. The weights are stored in bf16; the
point head is not trained. Shapes: B rows, H, W pixels, h, w patch grid, N = h w patches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.batch import Cameras
from vla_core.config import build_config
from vla_geometry import TinyGeometryEncoder
from vla_geometry.rays import pinhole_rays

TEMPERATURE = 0.07
SAME_POINT_M = 0.03  # a point is seen in another view if the depth there agrees to this
WORKSPACE_M = 2.0  # what is farther is floor and wall, and counts a tenth
WITHOUT_RAYS = 0.25  # share of the rows that get no intrinsics, so that the images-only path works too


def matches(
    depth: Tensor, intrinsics: Tensor, extrinsics: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Patch of the second view that shows the centre of each patch of the first.

    Args:
        depth: ``[B, 2, H, W]`` metres.
        intrinsics, extrinsics: ``[B, 2, 3, 3]`` pixels and ``[B, 2, 4, 4]`` camera-to-world.
        grid: (h, w).

    Returns:
        long ``[B, N]`` patch index in the second view, and bool ``[B, N]``: it is visible there.
    """
    height, width = depth.shape[2:]
    step_y, step_x = height // grid[0], width // grid[1]
    centres = (..., slice(step_y // 2, None, step_y), slice(step_x // 2, None, step_x))
    rays, _ = pinhole_rays(intrinsics, (height, width))
    local = (rays[:, 0] * depth[:, 0, None])[centres].flatten(2).mT
    between = torch.linalg.inv(extrinsics[:, 1].double()) @ extrinsics[:, 0].double()
    local = local @ between[:, :3, :3].float().mT + between[:, None, :3, 3].float()
    pixel = local @ intrinsics[:, 1].mT
    z = local[..., 2].clamp(min=1e-3)
    x, y = (pixel[..., 0] / z).floor().long(), (pixel[..., 1] / z).floor().long()
    inside = (local[..., 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    seen = depth[:, 1].flatten(1).gather(1, y * width + x)
    visible = inside & ((seen - local[..., 2]).abs() < SAME_POINT_M)
    return (y // step_y) * grid[1] + x // step_x, visible


class Frames:
    """All frames of an arrays data set on the device; the last tenth of the episodes is held out."""

    def __init__(
        self, root: Path, grid_of: Callable[[int, int], tuple[int, int]], device: torch.device
    ) -> None:
        meta = json.loads((root / "arrays.json").read_text())
        names = [camera["name"] for camera in meta["spec"]["observation"]["cameras"]]
        assert len(names) == 2

        def load(kind: str) -> Tensor:
            views = [np.load(root / f"observation.{kind}.{name}.npy", mmap_mode="r") for name in names]
            return torch.stack([torch.from_numpy(np.array(view)).to(device) for view in views], dim=1)

        self.images = load("images").permute(0, 1, 4, 2, 3).contiguous()
        self.depth, self.intrinsics, extrinsics = load("depth"), load("intrinsics"), load("extrinsics")
        grid = grid_of(int(self.depth.shape[2]), int(self.depth.shape[3]))
        parts = [
            matches(*columns, grid)
            for columns in zip(
                self.depth.split(512), self.intrinsics.split(512), extrinsics.split(512), strict=True
            )
        ]
        self.match, self.visible = (torch.cat(column) for column in zip(*parts, strict=True))
        # Whole episodes: neighbouring frames are nearly the same.
        lengths = [episode["frames"] for episode in meta["episodes"]]
        self.total = len(self.images)
        self.held = sum(lengths[: -max(1, len(lengths) // 10)])


class Losses(nn.Module):
    """Depth of every pixel, and InfoNCE over the patches of the other view."""

    def __init__(self, encoder: TinyGeometryEncoder, frames: Frames) -> None:
        super().__init__()
        self.encoder, self.frames = encoder, frames
        self.project = nn.Linear(encoder.dim, 128)

    def forward(self, index: Tensor, images: Tensor, intrinsics: Tensor) -> dict[str, Tensor]:
        """Losses and what can be read of them, for frames ``index [B]`` shown as ``images``."""
        frames = self.frames
        features = self.encoder(images, Cameras(intrinsics=intrinsics), frozenset({"depth"}))
        assert features.depth is not None
        true = frames.depth[index].clamp(min=0.05)
        weight = torch.where(true < WORKSPACE_M, 1.0, 0.1)
        off = (features.depth.log() - true.log()).abs()
        metres = (features.depth - true).abs()
        first, second = F.normalize(self.project(features.tokens).float(), dim=-1).flatten(2, 3).unbind(1)
        logits = first @ second.mT / TEMPERATURE
        match, seen = frames.match[index], frames.visible[index].float()
        entropy = F.cross_entropy(logits.flatten(0, 1), match.flatten(), reduction="none").view_as(seen)
        near = (true < WORKSPACE_M).float()
        return {
            "depth": (off * weight).sum() / weight.sum(),
            "match": (entropy * seen).sum() / seen.sum().clamp(min=1),
            "depth_error_m": (metres * near).sum() / near.sum().clamp(min=1),
            "match_rate": ((logits.argmax(-1) == match).float() * seen).sum() / seen.sum().clamp(min=1),
        }


def jitter(images: Tensor) -> Tensor:
    """Random brightness and contrast of each row, the same in all views; float in [0, 1]."""
    x = images.float() / 255
    draws = torch.rand(2, len(x), 1, 1, 1, 1, device=x.device)
    return ((x - 0.5) * (0.7 + 0.6 * draws[0]) + 0.5 + 0.3 * (draws[1] - 0.5)).clamp(0, 1)


class Step:
    """One optimisation step on the frames ``index``; on a GPU captured once and replayed."""

    def __init__(self, losses: Losses, batch_size: int, lr: float, device: torch.device) -> None:
        self.losses, self.device = losses, device
        self.index = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.lr = torch.tensor(lr, device=device)
        graph = device.type == "cuda"
        parameters = [p for p in losses.parameters() if p.requires_grad]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=(0.9, 0.95), weight_decay=0.05, capturable=graph, fused=graph
        )
        self.terms: dict[str, Tensor] = {}
        self.replay = self._eager
        if graph:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._eager()
            torch.cuda.current_stream().wait_stream(stream)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                self._eager()
            self.replay = captured.replay

    def _eager(self) -> None:
        frames = self.losses.frames
        images, intrinsics = frames.images[self.index], frames.intrinsics[self.index]
        blind = torch.rand(len(self.index), 1, 1, 1, device=self.device) < WITHOUT_RAYS
        intrinsics = intrinsics.masked_fill(blind, float("nan"))  # which the encoder takes for unknown
        bf16 = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            self.terms = self.losses(self.index, jitter(images), intrinsics)
        self.optimizer.zero_grad(set_to_none=True)
        (self.terms["depth"] + 0.1 * self.terms["match"]).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


@torch.no_grad()
def held_out(losses: Losses) -> dict[str, float]:
    """Means over held-out episodes, with and without intrinsics."""
    frames = losses.frames
    rows = torch.arange(frames.held, frames.total, device=frames.images.device)
    chunks = rows[:: max(1, len(rows) // 1024)].split(64)
    sums: dict[str, float] = {}
    for index in chunks:
        known = frames.intrinsics[index]
        for suffix, intrinsics in (
            ("", known),
            ("_without_intrinsics", torch.full_like(known, float("nan"))),
        ):
            for name, value in losses(index, frames.images[index], intrinsics).items():
                sums[name + suffix] = sums.get(name + suffix, 0.0) + float(value) / len(chunks)
    return sums


def main() -> None:
    """Train until the steps or the seconds are over, measure on held-out episodes, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path(__file__).with_name("base.yaml"))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600.0, help="stop earlier when this time is over")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    node = yaml.safe_load(args.base.read_text())["framework"]["geometry"]
    node = {key: value for key, value in node.items() if key != "name"}
    config = replace(build_config(TinyGeometryEncoder.Config, node, "geometry"), trainable=True, weights=None)
    patch = config.patch_size
    frames = Frames(args.data, lambda height, width: (height // patch, width // patch), device)
    size = (int(frames.images.shape[3]), int(frames.images.shape[4]))
    encoder = TinyGeometryEncoder.build(config, 2, size).to(device)
    encoder.get_submodule("dense.points").requires_grad_(False)
    losses = Losses(encoder, frames).to(device)
    step = Step(losses, args.batch_size, args.lr, device)
    started, done, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        # The schedule follows whichever ends first, steps or time, so that it always reaches its end.
        progress = min(1.0, max(done / args.steps, (time.monotonic() - started) / args.seconds))
        rate = min(1.0, (done + 1) / 300) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))
        step.lr.fill_(args.lr * rate)
        step.index.random_(frames.held)
        step.replay()
        done += 1
        if done % 1000 == 0:
            values = "  ".join(f"{name} {value.item():.4f}" for name, value in step.terms.items())
            print(f"step {done}  {time.monotonic() - started:.0f} s  {values}", flush=True)
    seconds = time.monotonic() - started
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.bfloat16().cpu().contiguous() for k, v in encoder.state_dict().items()}, args.out)
    count = sum(p.numel() for p in encoder.parameters())
    summary = {"steps": done, "seconds": seconds, "parameters": count, **held_out(losses)}
    args.out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
