"""Meta-World in words and pairs: what to say for each task, and which tasks share one scene."""

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


@dataclass(frozen=True)
class Phrasings:
    """Ways to say one task: ``train`` ones, and ``heldout`` ones never used for demonstrations."""

    train: tuple[str, ...]
    heldout: tuple[str, ...] = ()


# The faucet starts in the middle for both tasks; Meta-World only draws its x more widely for
# closing, so the narrower box is shared. The drawer starts shut for opening and open for closing;
# half-way neither criterion holds (shut: within 5.5 cm; open: beyond about 17 cm).
SHARED_SCENES = (
    SharedScene(("faucet-open", "faucet-close"), (-0.05, 0.8, 0.0), (0.05, 0.85, 0.0)),
    SharedScene(("drawer-open", "drawer-close"), (-0.1, 0.9, 0.0), (0.1, 0.9, 0.0), "goal_slidey", -0.1),
)

PHRASINGS = {
    "faucet-open": Phrasings(
        (
            "open the faucet",
            "turn on the faucet",
            "turn the faucet handle counter-clockwise",
            "rotate the tap open",
        ),
        ("switch the tap on", "let the water run from the faucet"),
    ),
    "faucet-close": Phrasings(
        (
            "close the faucet",
            "turn off the faucet",
            "turn the faucet handle clockwise",
            "rotate the tap closed",
        ),
        ("switch the tap off", "stop the water of the faucet"),
    ),
    "drawer-open": Phrasings(
        ("open the drawer", "pull the drawer open", "slide the drawer out"),
        ("get the drawer opened",),
    ),
    "drawer-close": Phrasings(
        ("close the drawer", "push the drawer shut", "slide the drawer in"),
        ("get the drawer closed",),
    ),
}

_SINGLE = {
    "assembly": "put the ring over the peg",
    "basketball": "drop the ball through the hoop",
    "bin-picking": "move the block to the other bin",
    "box-close": "put the lid on the box",
    "button-press": "push the button in",
    "button-press-topdown": "push the button down",
    "button-press-topdown-wall": "reach over the wall and push the button down",
    "button-press-wall": "reach around the wall and push the button in",
    "coffee-button": "start the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "put the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "lift the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "hammer": "hammer the nail into the box",
    "hand-insert": "put the hand into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle at the side down",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle at the side up",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "insert the peg into the hole in the box",
    "peg-unplug-side": "pull the peg out of the box",
    "pick-out-of-hole": "take the puck out of the hole and bring it to the goal",
    "pick-place": "lift the puck to the goal",
    "pick-place-wall": "carry the puck over the wall to the goal",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-back": "slide the plate out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "push": "push the puck to the goal",
    "push-back": "drag the puck back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "move the hand to the goal",
    "reach-wall": "move the hand around the wall to the goal",
    "shelf-place": "put the block on the shelf",
    "soccer": "shoot the ball into the net",
    "stick-pull": "pull the thermos with the stick",
    "stick-push": "push the thermos with the stick",
    "sweep": "sweep the block to the edge of the table",
    "sweep-into": "sweep the block into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}
PHRASINGS |= {task: Phrasings((sentence,)) for task, sentence in _SINGLE.items()}


def scene_of(task: str) -> SharedScene | None:
    """The shared scene ``task`` belongs to, or None."""
    return next((scene for scene in SHARED_SCENES if task in scene.tasks), None)
