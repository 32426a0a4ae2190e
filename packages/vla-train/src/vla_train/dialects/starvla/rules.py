"""What a row of the translation table is: a StarVLA key, what it becomes, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from vla_core.errors import ConfigError

Values = dict[str, Any]
"""Our dotted keys and their values."""


@dataclass(frozen=True)
class Given:
    """A key with its value, and the whole config around it.

    Args:
        key, value: StarVLA's.
        whole: all of its dotted keys and values.
        framework: our preset's name.
        where: ``file:line: `` of the key.
        whole_run: it stands in (or beside) a StarVLA YAML, not on a command line of this project.
    """

    key: str
    value: Any
    whole: Mapping[str, Any]
    framework: str
    where: str = ""
    whole_run: bool = True

    def refuse(self, advice: str) -> NoReturn:
        """Raise the error for a value that has no counterpart here."""
        raise ConfigError(f"{self.where}{self.key}={_shown(self.value)} cannot be translated: {advice}")

    def number(self) -> float:
        """The value as a number (command lines and YAML write ``1e-6`` as text)."""
        try:
            return float(self.value)
        except (TypeError, ValueError):
            self.refuse("it must be a number")


@dataclass(frozen=True)
class Outcome:
    """Our values, and a note for the user where there is something to say."""

    values: Values = field(default_factory=dict)
    note: str = ""


Apply = Callable[[Given], Outcome]


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Args:
        theirs: dotted key; a last ``*`` stands for anything below.
        ours: what it becomes, for the table; empty: it is read and has no effect.
        note: for the table.
        apply: makes our values.
    """

    theirs: str
    ours: str
    note: str
    apply: Apply

    def matches(self, key: str) -> bool:
        """Whether this row is about ``key``."""
        if self.theirs.endswith(".*"):
            return key.startswith(self.theirs[:-1])
        return key == self.theirs


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def moved(theirs: str, ours: str, note: str = "") -> Rule:
    """The same value under another name (or the same)."""
    return Rule(theirs, ours, note, lambda given: Outcome({ours: given.value}))


def dropped(theirs: str, why: str) -> Rule:
    """Accepted without effect, because nothing that is trained depends on it."""
    return Rule(theirs, "", why, lambda given: Outcome(note=why))


def only(theirs: str, allowed: tuple[Any, ...], why: str, advice: str) -> Rule:
    """Accepted without effect for the values that mean what happens here; refused for others."""

    def apply(given: Given) -> Outcome:
        if given.value not in allowed:
            given.refuse(advice)
        return Outcome(note=why)

    values = ", ".join(
        "null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in allowed
    )
    return Rule(theirs, "", f"{why} (other values than {values} are refused: {advice})", apply)


def converted(theirs: str, ours: str, note: str, apply: Apply) -> Rule:
    """Anything else."""
    return Rule(theirs, ours, note, apply)


def read_by(frameworks: Collection[str], who: str, rule: Rule) -> Rule:
    """``rule`` for ``frameworks``; in a config of another one the key has no effect, as in StarVLA."""

    def apply(given: Given) -> Outcome:
        if given.framework not in frameworks:
            return Outcome(note=f"only {who} read{'s' if who in frameworks else ''} it")
        return rule.apply(given)

    return replace(rule, apply=apply)
