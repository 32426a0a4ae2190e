"""A taken batch for a terminal. Shapes: T action steps, A action dims, D dims of a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from vla_core.types import Float

from vla_train.batch_view.taken import Part, ShownRow, Taken

_DIMS = 8
"""Dims of a group that are printed."""


def text(taken: Taken) -> str:
    """Tensors with ranges, and the first rows with what was recorded beside what the policy gets."""
    return "\n".join(_text(taken))


def heading(taken: Taken) -> str:
    """Which batch it is."""
    return (
        f"{taken.framework}, batch {taken.index} of the first process (step {taken.step}), "
        f"seed {taken.seed}: {taken.size} rows"
    )


def mask_of(row: ShownRow) -> str:
    """What of a row's actions is masked, in words."""
    steps, width = row.mask.shape
    counted = int(row.mask.any(axis=1).sum())
    said = f"{counted} of {steps} steps count"
    if row.dims < width:
        said += f", dims {row.dims} to {width - 1} are padding"
    return said


def _text(taken: Taken) -> Iterator[str]:
    yield heading(taken)
    yield f"epoch       {taken.epoch}"
    counts = ", ".join(f"{label} {n}" for label, n in taken.counts.items())
    yield f"rows from   {counts}"
    yield f"\n{'tensor':<28}{'dtype':<10}{'shape':<24}{'min':>12}{'max':>12}"
    for line in taken.lines:
        shape, (low, high) = " x ".join(map(str, line.shape)), line.ends
        share = "" if line.share is None else f"   {100 * line.share:.1f} % true"
        yield f"{line.name:<28}{line.dtype:<10}{shape:<24}{low:>12}{high:>12}{share}"
    for i, row in enumerate(taken.rows):
        yield ""
        yield f"row {i}: {row.label}, robot {row.embodiment}, episode {row.episode}, frame {row.frame}"
        yield f"  instruction {row.instruction!r}"
        if row.prompt:
            yield f"  prompt      {row.prompt!r}"
        for name, image in row.views.items():
            yield f"  view        {name}: " + (
                "missing"
                if image is None
                else f"{image.shape[1]} x {image.shape[0]}, mean {image.mean():.1f}"
            )
        yield from _vector("state", row.state, row.model_state)
        yield f"  actions     {mask_of(row)}; un-normalised, they are within {row.apart:.2g} of the recorded"
        yield from _vector("action, first step", _first(row.action), _first(row.model_action))
    if taken.augmented:
        yield "\npictures, cameras and states are those after datasets.augmentation"


def _first(parts: Sequence[Part]) -> list[Part]:
    return [Part(part.group, part.values[0]) for part in parts]


def _vector(title: str, recorded: Sequence[Part], model: Sequence[Part]) -> Iterator[str]:
    if not recorded and not model:
        yield f"  {title}: none"
        return
    yield f"  {title}"
    own = {part.group.name: part for part in model}
    for part in recorded:
        unit = part.group.unit
        yield f"    {part.group.name:<26} recorded  {_numbers(part.values)}  ({unit})"
        if part.group.name in own:
            yield f"    {'':<26} policy    {_numbers(own[part.group.name].values)}"
    for part in model:
        if part.group.name not in {one.group.name for one in recorded}:
            yield f"    {part.group.name:<26} policy    {_numbers(part.values)}"


def _numbers(values: Float) -> str:
    shown = " ".join(f"{value:9.4g}" for value in np.asarray(values)[:_DIMS])
    return shown + (f" ... ({len(values)})" if len(values) > _DIMS else "")
