from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from vla_core.config import build_config, load_tree
from vla_core.errors import ConfigError


@dataclass(frozen=True)
class Step:
    height: int = 1
    width: int = 1


@dataclass(frozen=True)
class Run:
    a: int = 0
    b: str = ""
    steps: list[Step] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def test_files_merge_in_order_and_origins_follow(write):
    first = write("first.yaml", "a: 1\nextra: {x: 1, y: 2}\nsteps:\n- height: 1\n  width: 2\n")
    second = write("second.yaml", "# comment\nextra:\n  y: 3\nsteps:\n- width: 5\n")
    tree = load_tree([first, second], defaults={"b": "given", "a": 7})
    assert tree.data == {"b": "given", "a": 1, "extra": {"x": 1, "y": 3}, "steps": [{"width": 5}]}
    assert tree.where("a") == f"{first}:1: "
    assert tree.where("extra.x") == f"{first}:2: "
    assert tree.where("extra.y") == f"{second}:3: "
    # The second file's list replaced the first one's: nothing of it is cited any more.
    assert tree.where("steps.0.height") == f"{second}:5: "
    assert tree.where("b") == ""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=5", {"a": 5}),
        ("new.deep.key=1", {"new": {"deep": {"key": 1}}}),
        ("extra.x=null", {"extra": {"x": None, "y": [1, 2]}}),
        ("extra={z: 1}", {"extra": {"x": 1, "y": [1, 2], "z": 1}}),
        ("extra.y=[3, {q: 1}]", {"extra": {"x": 1, "y": [3, {"q": 1}]}}),
        ("extra.y.1=9", {"extra": {"x": 1, "y": [1, 9]}}),
        ("steps.0.height=9", {"steps": [{"height": 9}]}),
        ("b=x=y", {"b": "x=y"}),
        ("b='1'", {"b": "1"}),
        ("b=", {"b": None}),
        ("a=1e-3", {"a": 1e-3}),
        ("b=${a}", {"b": 1}),
    ],
)
def test_overrides(write, override, expected):
    base = {"a": 1, "b": "s", "extra": {"x": 1, "y": [1, 2]}, "steps": [{"height": 2}]}
    path = write("c.yaml", "a: 1\nb: s\nextra: {x: 1, y: [1, 2]}\nsteps: [{height: 2}]\n")
    tree = load_tree([path], [override])
    assert tree.data == {**base, **expected}
    assert tree.where(override.partition("=")[0]) == "command line: "


def test_the_last_override_wins_and_names_the_command_line(write):
    path = write("c.yaml", "a: 1\nsteps:\n- height: x\n")
    tree = load_tree([path], ["a=2", "a=3", "extra={q: {r: 1}}", "steps.0.width=y", "steps.0.height=1"])
    assert tree.data["a"] == 3
    assert tree.where("extra.q.r") == "command line: "
    with pytest.raises(ConfigError, match=r"^command line: 'steps.0.width': expected an int, got 'y'$"):
        build_config(Run, tree.data, "", tree)
    tree = load_tree([path], ["steps=[{width: 1}]"])
    assert tree.where("steps.0.height") == "command line: "


@pytest.mark.parametrize(
    "override", ["a", "=1", "a.=1", "a..b=1", ".a=1", "1a=2", "a b=1", "a[0]=1", "--a=1", ""]
)
def test_malformed_overrides(override):
    with pytest.raises(ConfigError, match=r"^command line: '.*' is not of the form key=value") as error:
        load_tree([], [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("a=[1", "not valid YAML"),
        ("a=x: y: z", "not valid YAML"),
        ("a=${", "not valid YAML"),
        ("steps.4.height=1", "4 is none"),
        ("steps.first=1", "steps.first"),
    ],
)
def test_overrides_that_cannot_be_applied(write, override, part):
    path = write("c.yaml", "steps: [{height: 2}]\n")
    with pytest.raises(ConfigError) as error:
        load_tree([path], [override])
    assert str(error.value).startswith(f"command line: '{override}': ")
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: 1\nb: [1\n", 3, "not valid YAML"),
        ("a: 1\na: 2\n", 2, "duplicate"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2, "not valid YAML"),
        ("- 1\n- 2\n", None, "must be a mapping"),
        ("hello\n", None, "must be a mapping"),
        ("a: 1\nb: {c: ['${none}']}\n", 2, "'b.c.0': Interpolation key 'none' not found"),
        ("a: ${\n", 1, "'a'"),
        ("a: 1\nb: ${nothing:1}\n", 2, "'b': Unsupported interpolation type nothing"),
    ],
)
def test_bad_files(write, text, line, part):
    path = write("bad.yaml", text)
    with pytest.raises(ConfigError) as error:
        load_tree([path])
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert part in message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: no such config file$"):
        load_tree([tmp_path / "none.yaml"])
    with pytest.raises(ConfigError, match=r"a directory; name a config file in it$"):
        load_tree([tmp_path])
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_tree([tmp_path / "binary.yaml"])


def test_an_empty_file_changes_nothing(write):
    assert load_tree([write("empty.yaml", "# nothing\n")], ["a=1"]).data == {"a": 1}


def test_unknown_key_and_wrong_type_name_file_and_line(write):
    path = write("run.yaml", "a: 1\nsteps:\n- height: 4\n- widht: 4\n")
    tree = load_tree([path])
    with pytest.raises(ConfigError) as error:
        build_config(Run, tree.data, "", tree)
    assert str(error.value) == f"{path}:4: unknown key 'steps.1.widht' (did you mean 'width'?)"
    path = write("run.yaml", "b: x\na: many\n")
    tree = load_tree([path])
    with pytest.raises(ConfigError, match=rf"^{path}:2: 'a': expected an int, got 'many'$"):
        build_config(Run, tree.data, "", tree)


def test_subtrees(write):
    path = write("run.yaml", "run:\n  part:\n    a: q\n  value: 3\n")
    tree = load_tree([path])
    part = tree.sub("run.part")
    assert part.data == {"a": "q"}
    with pytest.raises(ConfigError, match=rf"^{path}:3: 'run.part.a': expected an int"):
        build_config(Run, part.data, "run.part", part)
    for key in ("run.none", "run.value", "run.value.deep"):
        with pytest.raises(ConfigError, match=rf"'{key}' must be set to a mapping$"):
            tree.sub(key)


def test_an_index_that_a_list_does_not_have(write):
    base = write("base.yaml", "top: {parts: [{a: 1}, {a: 2}], none: []}\n")
    for override, said in [
        ("top.parts.2.a=1", "'top.parts' has 2 entries, the first of which has index 0; 2 is none"),
        ("top.none.0=1", "'top.none' has no entry; 0 is none"),
    ]:
        with pytest.raises(ConfigError, match=f"command line: '{override}': {said}"):
            load_tree([base], [override])
