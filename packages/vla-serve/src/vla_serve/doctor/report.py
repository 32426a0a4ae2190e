"""A diagnosis in words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from vla_serve.doctor.diagnosis import FOLLOWED, Diagnosis
from vla_serve.doctor.errors import Yardstick

SHOWN = 12
"""Causes that are shown, the most helpful first."""
LOST = 0.9
"""From this share of knowing nothing on, a group does not follow the recording at all."""
DEAF = 0.02
"""Images that move answers by less than this share of what these differ between frames do not matter."""


def _share(value: float) -> str:
    return "> 999%" if value >= 10 else f"{value:.0%}"


def error_lines(yardstick: Yardstick, found: Diagnosis) -> Iterator[str]:
    """Errors of each group in its unit, over all steps and by step."""
    yield f"{'mean error of':24}{'':8}{'all steps':>10}{'first':>10}{'last':>10}{'of knowing nothing':>20}"
    errors = yardstick.errors(found.answers)
    rows = zip(yardstick.spec.groups, errors, found.scores, yardstick.still(), strict=True)
    for group, error_NT, score, still in rows:
        unit = "rad" if group.rotation in ("euler_xyz", "axis_angle") else group.unit
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step that no frame reaches has no mean
            steps_T = np.nanmean(error_NT, axis=0)
        numbers = "".join(f"{value:10.4g}" for value in (np.nanmean(error_NT), steps_T[0], steps_T[-1]))
        mark = "" if score < FOLLOWED else "  <- follows in part" if score < LOST else "  <- does not follow"
        mark += "  (never moves in these frames: of its size)" if still else ""
        yield f"{group.name:24}{unit:8}{numbers}{_share(score):>20}{mark}"
        yield f"{'':4}by step: {' '.join(f'{value:.3g}' for value in steps_T)}"


def cause_lines(found: Diagnosis, every: bool) -> Iterator[str]:
    """What was tried, and what follows from it; ``every``: all of it."""
    if not found.findings:
        yield "The answers follow the recording: nothing to explain (--all tries the causes anyway)."
        yield from _sight(found)
        return
    best = found.explanation
    yield f"{'before':>8}{'undone':>8}  tried (error as a share of that of knowing nothing)"
    shown = len(found.findings) if every else SHOWN
    for finding in found.findings[:shown]:
        star = "*" if finding is best else " "
        yield f"{_share(finding.before):>8}{_share(finding.after):>8} {star}{finding.name}"
    if len(found.findings) > shown:
        yield f"{'':18}and {len(found.findings) - shown} that help less (--all shows them)"
    for name, why in found.refused.items():
        yield f"{'':18}not tried: {name}: {why[:200]}"
    yield ""
    if best is not None:
        yield f"Explained by: {best.name}"
        yield (
            f"Undone, the error falls from {_share(best.before)} to {_share(best.after)} of that of an "
            "answer that knows nothing."
        )
    elif (found.scores < FOLLOWED).all():
        yield "The answers follow the recording, and nothing that was tried is better."
    elif (found.scores < LOST).all():
        yield (
            "None of these explains the rest. The answers follow the recording in part, as those of a policy "
            "that does its task may: see what it does (vla-rollout) before you look for a mistake."
        )
    else:
        yield (
            "None of these explains the difference. Is this the data that the policy was trained on, and "
            "was it trained for long enough?"
        )
    yield from _sight(found)


def _sight(found: Diagnosis) -> Iterator[str]:
    """Said also of a policy that succeeds: state and instruction may be enough for its task."""
    if found.image_influence is not None and found.image_influence < DEAF:
        yield (
            "The images hardly matter: no change of them moved the answers by more than "
            f"{found.image_influence:.1%} of what they differ between frames, so a mistake in them would "
            "not show."
        )
