"""Registries of variants: what they refuse, what they say, and references to code that is not imported yet."""

import pickle
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from ldcvae.registry import OneOf, Registry, UnknownVariantError, lazy
from ldcvae.variants import AUTOENCODERS, DIRECTIONS, GENERATORS, NETWORKS, sampler_net


@dataclass(frozen=True)
class Fruit:
    name: str
    colour: str = "green"


@pytest.fixture
def fruits() -> Registry[Fruit]:
    registry: Registry[Fruit] = Registry("fruit")
    for name in ("apple", "pear", "plum"):
        registry.register(Fruit(name))
    return registry


def test_records_keep_their_order_and_are_found_by_name(fruits):
    assert list(fruits) == ["apple", "pear", "plum"]
    assert len(fruits) == 3
    assert fruits["pear"] == fruits.find("pear") == Fruit("pear")
    assert fruits.register(fig := Fruit("fig")) is fig
    assert list(fruits)[-1] == "fig"
    assert "fig" in fruits
    assert "grape" not in fruits


def test_a_name_that_is_taken_is_refused(fruits):
    with pytest.raises(ValueError, match="fruit 'apple' is registered already; choose another name"):
        fruits.register(Fruit("apple", "red"))
    assert fruits["apple"].colour == "green"
    fruits.register(Fruit("apple"))  # the very same again, as when a plugin is imported under two names
    assert len(fruits) == 3


@pytest.mark.parametrize("name", ["", "Apple", "red apple", "red-apple", "2apples", "a.b"])
def test_a_name_that_cannot_be_a_key_is_refused(fruits, name):
    with pytest.raises(ValueError, match=f"fruit '{name}': a name is a lower-case identifier"):
        fruits.register(Fruit(name))
    assert len(fruits) == 3


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("aple", r"unknown fruit 'aple': did you mean apple\?"),
        ("pears", r"unknown fruit 'pears': did you mean pear\?"),
        ("xyz", "unknown fruit 'xyz': choose apple, pear, plum"),
        (7, "unknown fruit 7: choose apple, pear, plum"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_all(fruits, name, answer):
    with pytest.raises(UnknownVariantError, match=answer):
        fruits.find(name)
    with pytest.raises(KeyError):
        fruits[name]


def test_one_of_takes_what_is_registered_when_it_is_asked(fruits):
    rule = OneOf(fruits, "auto")
    assert rule.names == ["auto", "apple", "pear", "plum"]
    for name in rule.names:
        rule.check(name)
    with pytest.raises(ValueError, match=r"must be one of auto, apple, pear, plum; did you mean plum\?$"):
        rule.check("plums")
    for value in ("xyz", 3, None):
        with pytest.raises(ValueError, match=r"must be one of auto, apple, pear, plum$"):
            rule.check(value)
    fruits.register(Fruit("fig"))
    rule.check("fig")  # a plugin's, which came later


def test_lazy_is_equal_by_what_it_names_and_pickles():
    hypot = lazy("math:hypot")
    assert hypot == lazy("math:hypot") != lazy("math:dist")
    assert hash(hypot) == hash(lazy("math:hypot"))
    assert hypot != "math:hypot"
    for _ in range(2):  # before it has found its function, and after
        again = pickle.loads(pickle.dumps(hypot))  # noqa: S301  # just made here
        assert again == hypot
        assert again(3.0, 4.0) == hypot(3.0, 4.0) == 5.0


def test_lazy_takes_named_arguments_and_names_what_is_missing():
    assert lazy("builtins:int")("11", base=2) == 3
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        lazy("no_such_module:f")()
    with pytest.raises(AttributeError, match="no_such_function"):
        lazy("math:no_such_function")()


@pytest.mark.parametrize("registry", [NETWORKS, DIRECTIONS, AUTOENCODERS, GENERATORS], ids=lambda one: one.kind)
def test_every_record_names_code_that_is_there(registry):
    for name, record in registry.items():
        assert record.name == name
        for value in vars(record).values():
            if isinstance(value, lazy):
                module, _, function = value.target.partition(":")
                assert callable(getattr(__import__(module, fromlist=[function]), function)), value.target


def test_a_direction_of_ones_own_gets_a_generator_of_its_own():
    own = replace(DIRECTIONS["drift"], name="my_drift", label="mine")
    record = sampler_net(own)
    assert (record.name, record.label, record.kind, record.knob) == (
        "my_drift",
        "sampler net, mine",
        "net",
        "factor of the temperatures",
    )
    assert "compare.drift_temperatures" in record.reads
    assert record.stages == ("compare",)


def test_looking_at_what_there_is_imports_no_torch():
    code = """
import sys
from ldcvae.variants import AUTOENCODERS, DIRECTIONS, GENERATORS, NETWORKS
import ldcvae.training.settings
assert AUTOENCODERS and DIRECTIONS and GENERATORS and NETWORKS
found = sorted({"torch", "numpy", "ray", "pydantic"} & set(sys.modules))
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
