"""The options of a program: a mistake is one line, with the nearest name of an option that is unknown."""

from __future__ import annotations

import argparse
import difflib
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from vla_core.errors import suggest


def unreadable(words: Iterable[str]) -> str | None:
    """What is wrong with a word that this process could not decode; None: nothing."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:  # Python keeps such bytes as surrogates, which no file format takes
            encoding = sys.getfilesystemencoding()
            hint = "" if encoding == "utf-8" else "; set PYTHONUTF8=1"
            return f"{word!a} is not {encoding}, the encoding of this environment{hint}"
    return None


class Options(argparse.ArgumentParser):
    """As :class:`argparse.ArgumentParser`, without a screenful of usage around each mistake.

    Options with a dot in their name (``--env.key``) are another's affair: :func:`vla_core.dotted.dotted`. So
    are those of a command, which has a parser of its own.

    Args:
        others: whether options that it does not know may be another's as well.
    """

    def __init__(self, *args: Any, others: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.others = others

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As the parser's own, after a look at the names: what is missing may only be misspelt."""
        words = list(sys.argv[1:] if args is None else args)
        if (strange := unreadable(words)) is not None:
            self.error(strange)
        own = () if self.others else itertools.takewhile(self._is_own, words)
        for word in own:
            name = word.partition("=")[0]
            if name.startswith("--") and "." not in name and not self._knows(name):
                self.error(f"unknown option {name}{_nearest(name, self._names())}")
        return super().parse_known_args(words, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = suggest(str(value), map(str, action.choices))
            command = isinstance(action, argparse._SubParsersAction)
            name = "/".join(action.option_strings) or action.metavar or action.dest
            what = "no command" if command else f"argument {name}: no choice"
            self.error(f"{what} '{value}'{known}")

    def _is_own(self, word: str) -> bool:
        return word != "--" and (self._subparsers is None or word.startswith("-"))

    def _names(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _knows(self, name: str) -> bool:
        return any(known == name or (self.allow_abbrev and known.startswith(name)) for known in self._names())

    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[2:], [other[2:] for other in known], n=1)
    return f" (did you mean --{near[0]}?)" if near else ""
