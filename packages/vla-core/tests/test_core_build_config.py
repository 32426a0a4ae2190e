from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import MISSING
from vla_core.config import Tree, build_config, to_plain
from vla_core.errors import ConfigError


class Kind(enum.Enum):
    fast = 1
    slow = 2


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    steps: int = 2

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must be >= 0")


@dataclass(frozen=True)
class Outer:
    count: int = 1
    name: str = "x"
    flag: bool = False
    mode: Literal["plain", "quick"] = "plain"
    kind: Kind = Kind.fast
    maybe: Inner | None = None
    inner: Inner = field(default_factory=lambda: Inner(lr=0.5))
    parts: list[Inner] = field(default_factory=list)
    size: tuple[int, ...] = (1,)
    pair: tuple[int, str] = (1, "a")
    table: dict[str, Inner] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=lambda: {"base": 1})
    path: Path | None = None
    either: int | str = 3
    nested: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Mandatory:
    plain: int
    missing: dict[str, Any] = field(default_factory=lambda: MISSING)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"count": "3"}, 3),
        ({"name": 5}, "5"),
        ({"name": "a=b"}, "a=b"),
        ({"flag": "true"}, True),
        ({"flag": 0}, False),
        ({"mode": "quick"}, "quick"),
        ({"kind": "slow"}, Kind.slow),
        ({"maybe": {"steps": 7}}, Inner(steps=7)),
        ({"maybe": None}, None),
        ({"inner": {"steps": 7}}, Inner(lr=0.5, steps=7)),
        ({"parts": [{"lr": 1}, {}]}, [Inner(lr=1.0), Inner()]),
        ({"size": [1, 2, 3]}, (1, 2, 3)),
        ({"pair": [2, "b"]}, (2, "b")),
        ({"table": {"k": {"lr": "1e-4"}}}, {"k": Inner(lr=1e-4)}),
        ({"anything": {"more": [1]}}, {"base": 1, "more": [1]}),
        ({"path": "a/b"}, Path("a/b")),
        ({"either": "text"}, "text"),
        ({"either": 4}, 4),
        ({"nested": [[1], []]}, [[1], []]),
    ],
)
def test_accepted_values(node, expected):
    value = getattr(build_config(Outer, node), next(iter(node)))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"cuont": 1}, "unknown key 'top.cuont' (did you mean 'count'?)"),
        ({"count": "many"}, "'top.count': expected an int, got 'many'"),
        ({"count": 2.5}, "'top.count': expected an int, got 2.5"),
        ({"count": True}, "'top.count': expected an int, got True"),
        ({"count": None}, "'top.count': expected an int, got None"),
        ({"count": {"a": 1}}, "'top.count': expected an int, got {'a': 1}"),
        ({"flag": 2}, "'top.flag': expected true or false, got 2"),
        ({"flag": "maybe"}, "'top.flag': expected true or false, got 'maybe'"),
        ({"name": ["a"]}, "'top.name': expected text, got ['a']"),
        ({"mode": "plian"}, "'top.mode': no 'plian' here (did you mean 'plain'?)"),
        ({"mode": 3}, "'top.mode': expected one of 'plain', 'quick', got 3"),
        ({"kind": "other"}, "'top.kind': expected one of fast, slow, got 'other'"),
        ({"maybe": {"lrr": 1}}, "unknown key 'top.maybe.lrr' (did you mean 'lr'?)"),
        ({"maybe": {"lr": "q"}}, "'top.maybe.lr': expected a float, got 'q'"),
        ({"maybe": 3}, "'top.maybe': expected a mapping or null, got 3"),
        ({"inner": None}, "'top.inner': expected a mapping, got None"),
        ({"inner": {"steps": -1}}, "'top.inner': steps must be >= 0"),
        ({"parts": [{}, {"stepz": 1}]}, "unknown key 'top.parts.1.stepz' (did you mean 'steps'?)"),
        ({"parts": [{"steps": "q"}]}, "'top.parts.0.steps': expected an int, got 'q'"),
        ({"parts": [3]}, "'top.parts.0': expected a mapping, got 3"),
        ({"parts": {"lr": 1}}, "'top.parts': expected a list, got {'lr': 1}"),
        ({"size": 3}, "'top.size': expected a list, got 3; write [3]"),
        ({"size": "q"}, "'top.size': expected a list, got 'q'"),
        ({"pair": 3}, "'top.pair': expected a list, got 3"),
        ({"size": ["a"]}, "'top.size.0': expected an int, got 'a'"),
        ({"pair": [1]}, "'top.pair': expected 2 entries, got 1"),
        ({"table": {"k": {"lr": "q"}}}, "'top.table.k.lr': expected a float, got 'q'"),
        ({"anything": 3}, "'top.anything': expected a mapping, e.g. {base: 1}, got 3"),
        ({"either": [1]}, "'top.either': expected an int or text, got [1]"),
        ({"nested": [[1, "a"]]}, "'top.nested.0.1': expected an int, got 'a'"),
        ({"count": "???"}, "'top.count' must be set"),
        ({"maybe": {"steps": "???"}}, "'top.maybe.steps' must be set"),
    ],
)
def test_refused_values(node, message):
    with pytest.raises(ConfigError) as error:
        build_config(Outer, node, "top")
    assert str(error.value) == message


def test_a_node_that_is_no_mapping():
    no_mapping: Any = [1]
    with pytest.raises(ConfigError, match=r"^'top': expected a mapping, got \[1\]$"):
        build_config(Outer, no_mapping, "top")
    nothing: Any = None
    with pytest.raises(ConfigError, match=r"^'Outer': expected a mapping"):
        build_config(Outer, nothing)


def test_mandatory_keys():
    with pytest.raises(ConfigError, match=r"^'m.plain' must be set$"):
        build_config(Mandatory, {"missing": {}}, "m")
    with pytest.raises(ConfigError, match=r"^'missing' must be set$"):
        build_config(Mandatory, {"plain": 1})
    assert build_config(Mandatory, {"plain": 1, "missing": {}}) == Mandatory(1, {})


def test_origins_of_the_nearest_parent():
    tree = Tree({}, {"top": "a.yaml:1", "top.parts": "a.yaml:2", "top.parts.0.steps": "b.yaml:7"})
    for node, start in [
        ({"parts": [{"steps": "q"}]}, "b.yaml:7: 'top.parts.0.steps'"),
        ({"parts": [{}, {"steps": "q"}]}, "a.yaml:2: 'top.parts.1.steps'"),
        ({"count": "q"}, "a.yaml:1: 'top.count'"),
        ({"inner": {"steps": -1}}, "a.yaml:1: 'top.inner': steps must be"),
    ]:
        with pytest.raises(ConfigError) as error:
            build_config(Outer, node, "top", tree)
        assert str(error.value).startswith(start)


def test_an_error_of_several_lines_becomes_one():
    @dataclass
    class Wordy:
        a: int = 1

        def __post_init__(self) -> None:
            raise ValueError("first\n  second")

    @dataclass
    class Silent:
        a: int = 1

        def __post_init__(self) -> None:
            raise ValueError

    with pytest.raises(ConfigError, match=r"^'w': first second$"):
        build_config(Wordy, {}, "w")
    with pytest.raises(ConfigError, match=r"^'s': "):
        build_config(Silent, {}, "s")


def test_plain_data_gives_the_same_config_again():
    config = build_config(
        Outer, {"maybe": {"lr": 2}, "parts": [{"steps": 4}], "path": "a/b", "kind": "slow", "size": [4, 5]}
    )
    plain = to_plain(config)
    assert plain["path"] == "a/b"
    assert plain["kind"] == "slow"
    assert plain["size"] == [4, 5]
    assert plain["maybe"] == {"lr": 2.0, "steps": 2}
    assert build_config(Outer, plain) == config


@dataclass(frozen=True)
class Switches:
    compile: Literal["off", "blocks"] = "blocks"
    either: Literal["on", "off"] | None = None


def test_words_that_yaml_takes_for_truth_values_are_words() -> None:
    """``compile: off`` is False in YAML 1.1."""
    assert build_config(Switches, {"compile": False, "either": True}) == Switches("off", "on")
    with pytest.raises(ConfigError, match="one of 'off', 'blocks', got True"):
        build_config(Switches, {"compile": True})


def test_a_key_is_placed_by_what_stands_below_it_before_what_stands_above() -> None:
    tree = Tree({}, {"trainer": "a.yaml:1", "trainer.steps.max": "command line", "trainer.step": "a.yaml:2"})
    assert tree.where("trainer.steps") == "command line: "
    assert tree.where("trainer.step") == "a.yaml:2: "
    assert tree.where("trainer.other") == "a.yaml:1: "
    assert tree.where("train") == ""
