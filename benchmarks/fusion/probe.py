"""How much of its geometry a trained policy uses: its actions with the geometry of another sample.

    uv run python benchmarks/fusion/probe.py --runs runs/fusion/policies --data runs/fusion --out probe.jsonl

Reads ``rows.jsonl`` of ``vla-train ablate``. Each policy answers the same held-out frames twice with the
same noise: with their own geometry (tokens, depth, calibration), and with that of another frame. What is
written is the mean absolute change of an action in standard deviations of the policy's own actions over
those frames; and the same for the tokens of each view in another order (``permuted``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vla_core.batch import Batch
from vla_core.interfaces import GeometryFeatures
from vla_core.policy import VLAPolicy
from vla_data import ArraysConfig, ArraysSource
from vla_train.ablate import read_rows

HORIZON = 16


def of_another_sample(batch: Batch) -> tuple[Batch, Callable[[GeometryFeatures], GeometryFeatures]]:
    """The batch with the cameras and depth of other rows, and what does the same to features."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1)).to(batch.images.device)

    def mixed(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[order]

    cameras = batch.cameras
    if cameras is not None:
        moved = {name: mixed(getattr(cameras, name)) for name in ("depth", "intrinsics", "extrinsics")}
        batch = replace(batch, cameras=replace(cameras, **moved))
    return batch, lambda f: replace(
        f,
        tokens=f.tokens[order],
        registers=mixed(f.registers),
        depth=mixed(f.depth),
        points=mixed(f.points),
    )


def permuted(features: GeometryFeatures) -> GeometryFeatures:
    """The tokens of each view in another order."""
    flat = features.tokens.flatten(2, 3)
    order = torch.randperm(flat.shape[2], generator=torch.Generator().manual_seed(2)).to(flat.device)
    return replace(features, tokens=flat[:, :, order].view_as(features.tokens))


@torch.inference_mode()
def probe(policy: VLAPolicy, batch: Batch, noise: Tensor) -> dict[str, float]:
    """Mean absolute change of the actions over their standard deviation, for both ways of mixing."""

    def actions(of: Batch, change: Callable[[GeometryFeatures], GeometryFeatures] | None = None) -> Tensor:
        if change is None or policy.model.geometry is None:
            return policy.model.predict(of, noise)
        hook = policy.model.geometry.register_forward_hook(lambda _, __, features: change(features))
        try:
            return policy.model.predict(of, noise)
        finally:
            hook.remove()

    own = actions(batch)
    spread = own.flatten(0, 1).std(dim=0)

    def off(other: Tensor) -> float:
        return float(((other - own).abs().mean(dim=(0, 1)) / spread).mean())

    mixed, change = of_another_sample(batch)
    return {"shuffled": off(actions(mixed, change)), "permuted": off(actions(batch, permuted))}


def main() -> None:
    """A line a finished run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True, help="holds held_same")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=128)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = ArraysSource(ArraysConfig(str(args.data / "held_same")), HORIZON)
    chosen = torch.linspace(0, len(source) - 1, min(args.frames, len(source))).long().tolist()
    seen = [source[i].observation for i in chosen]
    lines: list[dict[str, Any]] = []
    for runs in args.runs:
        for row in read_rows(runs):
            if row.status != "finished":
                continue
            checkpoint = sorted((runs / row.run / "checkpoints").glob("steps_*"))[-1]
            policy = VLAPolicy.from_pretrained(checkpoint, str(device)).eval()
            batch = policy.collate(seen).to(device)
            (spec,) = policy.specs.values()
            width = sum(group.dim for group in spec.action.groups)
            draw = torch.Generator().manual_seed(0)
            noise = torch.randn(len(batch), HORIZON, width, generator=draw).to(device)
            lines.append({"variant": row.variant, "seed": row.seed, **probe(policy, batch, noise)})
            print(lines[-1], flush=True)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
