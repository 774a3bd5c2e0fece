"""Names for parts, and the public names of the package."""

import statistics
import subprocess
import sys

import pytest

import xlcm
from xlcm import registry
from xlcm.registry import Registry, nearest

KINDS = [kind for kind in vars(registry).values() if isinstance(kind, Registry)]


def test_an_unknown_name_is_told_with_the_nearest_and_all_known():
    kind = Registry("fruit", {"apple": "m:Apple", "pear": "m:Pear"})
    with pytest.raises(KeyError) as caught:
        kind.get("aple")
    assert caught.value.args[0] == (
        "no fruit is called 'aple'; did you mean 'apple'?; known: apple, pear"
    )
    with pytest.raises(KeyError, match="no fruit is called 'zzz'; known: apple, pear"):
        kind.get("zzz")


def test_a_name_belongs_to_one_class():
    kind = Registry("fruit", {"apple": "elsewhere:Apple"})

    @kind.register("pear")
    class Pear:
        pass

    assert kind.get("pear") is Pear
    with pytest.raises(ValueError, match=r"fruit 'pear' is already .*Pear"):
        kind.register("pear")(type("Other", (), {}))
    with pytest.raises(ValueError, match="fruit 'apple' is already elsewhere:Apple"):
        kind.register("apple")(Pear)
    assert kind.get("pear") is Pear


def test_registering_a_class_again_takes_the_newer_one():
    """As when a module is loaded twice, in a notebook for instance."""
    kind = Registry("fruit")

    def define():
        return kind.register("apple")(type("Apple", (), {"__module__": "m"}))

    first, second = define(), define()
    assert first is not second
    assert kind.get("apple") is second


def test_names_come_sorted_and_without_import():
    kind = Registry("fruit", {"pear": "no_such_module:Pear", "apple": "no_such_module:Apple"})
    assert list(kind) == ["apple", "pear"]
    assert "pear" in kind
    assert "plum" not in kind
    with pytest.raises(ModuleNotFoundError):
        kind.get("pear")


def test_nearest_is_silent_where_nothing_is_near():
    assert nearest("lr", ["lr_scale", "weight_decay"]) == ""
    assert nearest("weigth_decay", ["lr", "weight_decay"]) == "; did you mean 'weight_decay'?"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_built_in_part_is_there(kind):
    for name in kind:
        assert isinstance(kind.get(name), type), name


def test_kinds_have_names_of_their_own():
    names = [kind.kind for kind in KINDS]
    assert len(set(names)) == len(names) >= 9


# -- import xlcm --------------------------------------------------------------------------------


def test_every_public_name_resolves():
    for name in xlcm.__all__:
        assert getattr(xlcm, name) is not None, name
    assert set(dir(xlcm)) >= set(xlcm.__all__)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'xlcm' has no attribute 'DualEncoda'"):
        xlcm.DualEncoda  # noqa: B018
    assert not hasattr(xlcm, "__wrapped__")


def test_import_is_quick_and_loads_no_torch():
    code = (
        "import sys, time; begin = time.perf_counter(); import xlcm;"
        "took = time.perf_counter() - begin; dir(xlcm); xlcm.__version__;"
        "heavy = {'torch', 'transformers', 'timm', 'pydantic', 'numpy'} & set(sys.modules);"
        "print(took, *heavy)"
    )
    seconds = []
    for _ in range(5):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        took, *heavy = run.stdout.split()
        assert not heavy
        seconds.append(float(took))
    assert statistics.median(seconds) < 0.5
