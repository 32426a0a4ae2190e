from __future__ import annotations

import importlib
from fractions import Fraction
from importlib.metadata import EntryPoint

import pytest
from vla_core import installed, registry
from vla_core.complete import METHODS, check_complete
from vla_core.errors import ConfigError, suggest


@pytest.fixture
def points(monkeypatch):
    """Entry points of the group ``vla.transforms`` as given by the test, and none of any other."""
    given: list[EntryPoint] = []
    monkeypatch.setattr(installed, "points", lambda group: [p for p in given if p.group == group])

    def add(name: str, value: str) -> None:
        given.append(EntryPoint(name, value, "vla.transforms"))

    return add


def test_load_imports_the_named_part_alone(points):
    points("fraction", "fractions:Fraction")
    points("broken", "no_such_package.module:Part")
    from fractions import Fraction

    assert registry.load("vla.transforms", "fraction") is Fraction
    assert registry.names("vla.transforms") == ["broken", "fraction"]
    assert registry.names("vla.vlms") == []


def test_unknown_name_suggests_the_nearest(points):
    points("layerwise_fm", "fractions:Fraction")
    with pytest.raises(
        ConfigError, match=r"^no 'layerwise_fn' in vla.transforms \(did you mean 'layerwise_fm'\?\)$"
    ):
        registry.load("vla.transforms", "layerwise_fn")
    with pytest.raises(ConfigError, match=r"\(known: layerwise_fm\)$"):
        registry.load("vla.transforms", "zzz")
    with pytest.raises(ConfigError, match=r"\(known: none\)$"):
        registry.load("vla.vlms", "zzz")


def test_two_packages_that_claim_a_name(points):
    points("mlp", "fractions:Fraction")
    points("mlp", "decimal:Decimal")
    with pytest.raises(ConfigError, match=r"claimed by fractions:Fraction, decimal:Decimal; uninstall one"):
        registry.load("vla.transforms", "mlp")


def test_a_distribution_seen_twice_is_one(points):
    points("mlp", "fractions:Fraction")
    points("mlp", "fractions:Fraction")
    assert registry.load("vla.transforms", "mlp").__name__ == "Fraction"


def test_a_missing_dependency_is_named(points):
    points("broken", "no_such_package.module:Part")
    with pytest.raises(ConfigError, match=r"needs the package 'no_such_package'; install it"):
        registry.load("vla.transforms", "broken")


def test_override_and_undo(points):
    points("mlp", "fractions:Fraction")
    undo = registry.override("vla.transforms", "mlp", "mine")
    inner = registry.override("vla.transforms", "mlp", "inner")
    assert registry.load("vla.transforms", "mlp") == "inner"
    inner()
    assert registry.load("vla.transforms", "mlp") == "mine"
    undo()
    assert registry.load("vla.transforms", "mlp").__name__ == "Fraction"
    undo = registry.override("vla.transforms", "only_here", "x")
    assert registry.names("vla.transforms") == ["mlp", "only_here"]
    with pytest.raises(ConfigError, match="did you mean 'only_here'"):
        registry.load("vla.transforms", "only_her")
    undo()
    assert registry.names("vla.transforms") == ["mlp"]


def test_unknown_group():
    for call in (lambda: registry.names("vla.head"), lambda: registry.override("vla.head", "x", 1)):
        with pytest.raises(
            ValueError, match=r"unknown entry point group 'vla.head' \(did you mean 'vla.heads'"
        ):
            call()


def test_suggest():
    assert suggest("hidden_siz", ["hidden_size", "depth"]) == " (did you mean 'hidden_size'?)"
    assert suggest("q", ["b", "a"]) == " (known: a, b)"
    assert suggest("q", []) == " (known: none)"


def test_what_was_installed_meanwhile_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no 'late' in vla\.transforms"):
        registry.load("vla.transforms", "late")
    metadata = tmp_path / "late_parts-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: late-parts\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[vla.transforms]\nlate = fractions:Fraction\n")
    assert registry.load("vla.transforms", "late").__name__ == "Fraction"
    assert "late-parts" in installed.bringers()


def test_a_class_that_is_not_there_is_named(points):
    points("mine", "fractions:Fractoin")
    with pytest.raises(ConfigError, match=r"\(fractions:Fractoin\): there is no 'Fractoin' in fractions$"):
        registry.load("vla.transforms", "mine")


def test_an_attribute_error_of_the_module_itself_is_shown_as_it_is(points, tmp_path, monkeypatch):
    (tmp_path / "module_with_a_bug.py").write_text("import math\nmath.no_such_function()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points("mine", "module_with_a_bug:Part")
    with pytest.raises(AttributeError, match="no_such_function"):
        registry.load("vla.transforms", "mine")


@pytest.mark.parametrize("group", METHODS)
def test_a_part_that_lacks_methods_says_which(group, monkeypatch):
    monkeypatch.setattr(
        installed,
        "points",
        lambda asked: [EntryPoint("mine", "fractions:Fraction", asked)] * (asked == group),
    )
    protocol, methods = METHODS[group]
    with pytest.raises(ConfigError) as told:
        registry.load(group, "mine")
    absent = [name for name in methods if name == "__call__" or not hasattr(Fraction, name)]
    assert absent
    assert str(told.value) == (
        f"'mine' in {group} (fractions:Fraction) lacks Config, {', '.join(f'{n}()' for n in absent)}: "
        f"see vla_core.{protocol}"
    )


@pytest.mark.parametrize("group", METHODS)
def test_the_methods_are_those_of_the_protocol(group):
    protocol, methods = METHODS[group]
    module, _, name = protocol.rpartition(".")
    if module == "interfaces":
        pytest.importorskip("torch")
    members = vars(getattr(importlib.import_module(f"vla_core.{module}"), name))
    generated = {"__init__", "__subclasshook__", "_no_init_or_replace_init"}
    declared = {n for n, v in members.items() if callable(getattr(v, "__func__", v)) and n not in generated}
    assert declared == set(methods)


def test_a_class_whose_instances_can_be_called_is_not_any_class():
    methods = {name: lambda self: None for name in METHODS["vla.heads"][1] if name != "__call__"}
    with pytest.raises(ConfigError, match=r"^it lacks __call__\(\): see"):
        check_complete("vla.heads", type("Head", (), {"Config": int, **methods}), "it")
    check_complete("vla.heads", type("Head", (), {"Config": int, "__call__": len, **methods}), "it")


def test_a_module_without_forward_cannot_be_called():
    nn = pytest.importorskip("torch").nn
    methods = {name: lambda self: None for name in METHODS["vla.heads"][1] if name != "__call__"}
    with pytest.raises(ConfigError, match=r"^it lacks __call__\(\): see"):
        check_complete("vla.heads", type("Head", (nn.Module,), {"Config": int, **methods}), "it")
    check_complete("vla.heads", type("Head", (nn.Module,), {"Config": int, "forward": len, **methods}), "it")
    # A module's own hook finds its parts alone.
    with pytest.raises(ConfigError, match="it lacks build"):
        check_complete("vla.heads", type("Head", (nn.Module,), {"Config": int}), "it")


def test_what_instances_alone_have_is_believed():
    class Around:
        Config = int

        def __getattr__(self, name):
            return getattr(self.inner, name)

    check_complete("vla.envs", Around, "it")
    Around.Config = None
    with pytest.raises(ConfigError, match="it lacks Config: see"):
        check_complete("vla.envs", Around, "it")

    class Annotated:
        Config = int
        tasks: object
        reset: object

        def step(self, action): ...

    with pytest.raises(ConfigError, match=r"it lacks close\(\): see"):
        check_complete("vla.envs", Annotated, "it")
