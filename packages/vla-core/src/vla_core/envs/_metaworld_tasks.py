"""Which Meta-World tasks share one scene, and from where both can start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SharedScene:
    """Tasks that can start from the same states, so that the instruction alone decides.

    Args:
        tasks: the tasks; each has its own success criterion.
        low: lower corner of the object's position box ``[3]`` in metres, valid for all tasks.
        high: upper corner of the box.
        joint: the joint that tasks start in different positions, if any.
        value: where a shared start puts it (metres or radians): between the goals of the tasks.
    """

    tasks: tuple[str, ...]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    joint: str | None = None
    value: float = 0.0


# The faucet starts in the middle for both tasks; Meta-World only draws its x more widely for
# closing, so the narrower box is shared. The drawer starts shut for opening and open for closing;
# half-way neither criterion holds (shut: within 5.5 cm; open: beyond about 17 cm).
SHARED_SCENES = (
    SharedScene(("faucet-open", "faucet-close"), (-0.05, 0.8, 0.0), (0.05, 0.85, 0.0)),
    SharedScene(("drawer-open", "drawer-close"), (-0.1, 0.9, 0.0), (0.1, 0.9, 0.0), "goal_slidey", -0.1),
)


def scene_of(task: str) -> SharedScene | None:
    """The shared scene ``task`` belongs to, or None."""
    return next((scene for scene in SHARED_SCENES if task in scene.tasks), None)
