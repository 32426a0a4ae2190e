"""Options of a part on a command line."""

from __future__ import annotations

import pytest
from vla_core.dotted import dotted
from vla_core.errors import ConfigError


def test_both_ways_to_write_an_option_with_values_as_in_yaml() -> None:
    words = ["--env.cameras", "[a, b]", "--env.size=32", "--env.depth", "true", "--env.shift", "-1"]
    words += ["--env.instruction", "say: open it: now", "--env.empty="]
    assert dotted(words, "env", "vla-data record") == {
        "cameras": ["a", "b"],
        "size": 32,
        "depth": True,
        "shift": -1,
        "instruction": "say: open it: now",
        "empty": None,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env.size"], "--env.size: a value is missing"),
        (["--env.size", "--env.depth", "true"], "--env.size: a value is missing"),
        (["--data.size", "3"], "unknown argument '--data.size'; see vla-rollout --help"),
        (["stray"], "unknown argument 'stray'"),
        (["--env.=3"], "write --env.KEY VALUE"),
    ],
)
def test_what_is_no_option_is_named(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        dotted(words, "env", "vla-rollout")
