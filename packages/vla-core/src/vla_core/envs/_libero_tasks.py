"""What LIBERO's suites and LIBERO-PRO's variants are called, and the protocol they are judged by.

Sources: LIBERO (Liu et al., arXiv 2306.03310), LIBERO-PRO (arXiv 2510.03827); horizons and settling steps as
in OpenVLA's LIBERO evaluation, which later papers follow. Nothing here needs the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_core.errors import ConfigError, suggest

SUITES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
"""Suite -> number of its tasks."""

HORIZONS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Suite -> control steps of an episode after settling (the longest demonstration and a little more)."""

SETTLE_STEPS = 10
"""Steps without motion and with open gripper before the policy is asked: objects fall onto the table."""

N_STARTS = 50
"""Initial states per task in the benchmark's files."""

VARIANTS = {"none": "", "language": "_lan", "swap": "_swap", "object": "_object", "task": "_task"}
"""Option -> suffix of the suite in LIBERO-PRO: reworded; objects in each other's places; objects that look
different; another task in the same scene."""

_SECOND_BOWL = {0: 1, 1: 6, 2: 8, 3: 9, 4: 9, 5: 3, 6: 7, 7: 9, 8: 1, 9: 7}
"""Number in ``libero_spatial`` -> the task that asks for its scene's second bowl: by the scenes' files that
bowl begins in the region where the other task's bowl does."""

_OBJECTS = (
    *("alphabet_soup", "cream_cheese", "salad_dressing", "bbq_sauce", "ketchup"),
    *("tomato_sauce", "butter", "milk", "chocolate_pudding", "orange_juice"),
)
"""What task 0, 1, ... of ``libero_object`` puts into the basket."""

_CIRCLE = (0, 1, 7, 5, 6, 9, 8, 3, 4, 2)
"""Numbers in ``libero_object``: by the scenes' files the five other objects of a task's scene are those of
the task before it in this circle and of the four behind it."""

_SAME_SCENE = frozenset({"none", "language"})
_SAME_OBJECTS = frozenset({"none", "language", "swap"})
_SAY_ANOTHER = frozenset({"language", "task"})


@dataclass(frozen=True)
class LiberoTask:
    """One task by suite and number (the benchmark's order)."""

    suite: str
    index: int
    variant: str = "none"

    @property
    def folder(self) -> str:
        """Name of the suite that has the task's files."""
        return self.suite + VARIANTS[self.variant]

    @property
    def horizon(self) -> int:
        """Control steps of an official episode."""
        return HORIZONS[self.suite]

    @property
    def others(self) -> dict[str, tuple[str, str, str]]:
        """Other tasks whose sentences fit this scene -> the predicate by which each is done. Known for
        ``libero_spatial`` (the second bowl) and ``libero_object`` (the five other things on the floor)."""
        if self.suite == "libero_spatial" and self.variant in _SAME_SCENE:
            return {f"libero_spatial_{_SECOND_BOWL[self.index]}": ("on", "akita_black_bowl_2", "plate_1")}
        if self.suite == "libero_object" and self.variant in _SAME_OBJECTS:
            at = _CIRCLE.index(self.index)
            there = sorted(_CIRCLE[(at + step) % len(_CIRCLE)] for step in (-1, 1, 2, 3, 4))
            return {
                f"libero_object_{n}": ("in", f"{_OBJECTS[n]}_1", "basket_1_contain_region") for n in there
            }
        return {}

    def sentence(self, of_file_name: str, of_scene: str) -> str:
        """What a policy is told.

        LIBERO's demonstrations and evaluations take the sentence from the name of the task's file. LIBERO-PRO
        keeps the names where it changes what is said, and writes the new sentence into the scene's file.
        """
        return of_scene if self.variant in _SAY_ANOTHER else of_file_name


def names() -> list[str]:
    """All tasks: ``libero_spatial_0``, ..., ``libero_90_89``."""
    return [f"{suite}_{index}" for suite, n in SUITES.items() for index in range(n)]


def find(name: str, variant: str) -> LiberoTask:
    """The task of a name.

    Raises:
        ConfigError: unknown task or variant, or LIBERO-PRO has no such variant of the suite.
    """
    if name not in names():
        raise ConfigError(
            f"env.task: no LIBERO task '{name}'{suggest(name, names())}; "
            f"a task is SUITE_NUMBER, of the suites {', '.join(SUITES)}"
        )
    if variant not in VARIANTS:
        raise ConfigError(f"env.variant: '{variant}' is none of {', '.join(VARIANTS)}")
    suite, _, index = name.rpartition("_")
    if variant != "none" and suite == "libero_90":
        raise ConfigError(
            "env.variant: LIBERO-PRO has variants of the suites of ten tasks, none of libero_90"
        )
    return LiberoTask(suite, int(index), variant)
