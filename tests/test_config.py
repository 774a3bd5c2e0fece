"""From YAML and the command line to checked arguments and parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, field_validator, model_validator

from xlcm.config import (
    ConfigError,
    Part,
    Section,
    build,
    check,
    check_part,
    dump,
    load,
    merge,
    override,
    part_field,
    read,
)
from xlcm.data.manifest import DataError
from xlcm.registry import Registry
from xlcm.training.settings import RunConfig

shapes = Registry("shape")
papers = Registry("paper")
BUILT: list[str] = []


@shapes.register("circle")
class Circle:
    def __init__(self, *, radius: Annotated[float, Field(gt=0)] = 1.0, hollow: bool = False):
        BUILT.append("circle")
        self.radius, self.hollow = radius, hollow


@shapes.register("square")
class Square:
    def __init__(
        self, *, side: Annotated[int, Field(gt=0)], colour: Literal["red", "blue"] = "red"
    ):
        BUILT.append("square")
        if side == 13:
            raise ValueError("13 brings bad luck")
        if side == 14:
            raise DataError("data.jsonl:3: broken")
        self.side, self.colour = side, colour


@shapes.register("frame")
class Frame:
    """Wants a width from the code that builds it."""

    def __init__(self, width: int, *, thickness: int = 1):
        BUILT.append("frame")
        self.width, self.thickness = width, thickness


@papers.register("drawing")
class Drawing:
    def __init__(
        self,
        *,
        main: Annotated[object, Part(shapes)],
        others: list[Annotated[object, Part(shapes)]] = (),
        named: dict[str, Annotated[object, Part(shapes)]] | None = None,
        border: Annotated[Callable[[int], Frame], Part(shapes, "frame")],
        maybe: Annotated[object | None, Part(shapes)] = None,
    ):
        BUILT.append("drawing")
        self.main, self.others, self.named = main, others, named
        self.border, self.maybe = border, maybe


class Inner(Section):
    rate: Annotated[float, Field(gt=0)] = 0.1
    names: list[str] = []
    odds: dict[str, float] = {}


class Outer(Section):
    shape: part_field(shapes)
    paper: part_field(papers) | None = None
    inner: Inner = Inner()
    size: int
    places: list[Inner] = []


@pytest.fixture(autouse=True)
def nothing_built():
    BUILT.clear()


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def faults(tree: dict, overrides: Sequence[str] = ()) -> list[str]:
    override(tree, overrides)
    with pytest.raises(ConfigError) as caught:
        check(Outer, tree, where="some.yaml")
    assert not BUILT, "a part was built before everything was checked"
    return str(caught.value).splitlines()


# -- extends ------------------------------------------------------------------------------------


def test_a_chain_of_extends_is_laid_over_from_the_far_end(write):
    write("base.yaml", "size: 1\ninner: {rate: 0.5, names: [a]}\nshape: circle\n")
    write("deep/middle.yaml", "extends: ../base.yaml\nsize: 2\ninner: {odds: {x: 1}}\n")
    path = write("deep/er/leaf.yaml", "extends: ../middle.yaml\ninner: {rate: 0.7}\n")
    config = load(Outer, path)
    assert (config.size, config.inner.rate) == (2, 0.7)
    assert config.inner.names == ["a"]
    assert config.inner.odds == {"x": 1.0}


def test_of_several_bases_the_later_wins_and_lists_are_replaced_whole(write):
    write("a.yaml", "size: 1\ninner: {rate: 0.5, names: [a, b]}\nshape: circle\n")
    write("b.yaml", "size: 2\ninner: {names: [c]}\n")
    path = write("leaf.yaml", "extends: [a.yaml, b.yaml]\n")
    config = load(Outer, path)
    assert (config.size, config.inner.rate, config.inner.names) == (2, 0.5, ["c"])


def test_two_bases_may_share_a_base(write):
    write("root.yaml", "size: 1\nshape: circle\n")
    write("a.yaml", "extends: root.yaml\n")
    write("b.yaml", "extends: root.yaml\ninner: {rate: 2}\n")
    assert load(Outer, write("leaf.yaml", "extends: [a.yaml, b.yaml]\n")).inner.rate == 2.0


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_of_extends_is_refused(write, length):
    for i in range(length):
        write(f"{i}.yaml", f"extends: {(i + 1) % length}.yaml\nsize: 1\n")
    with pytest.raises(ConfigError, match=r"0\.yaml: `extends` goes round in a circle"):
        read(write("0.yaml", f"extends: {1 % length}.yaml\n"))


@pytest.mark.parametrize("value", ["3", "{a: b}", "[a.yaml, 1]", "null"])
def test_extends_takes_files_only(write, value):
    with pytest.raises(ConfigError, match=r"leaf\.yaml: `extends` takes a file or a list"):
        read(write("leaf.yaml", f"extends: {value}\n"))


def test_a_part_of_another_name_drops_the_options_of_the_base(write):
    write("base.yaml", "size: 1\nshape: {name: circle, radius: 3}\n")
    renamed = load(Outer, write("a.yaml", "extends: base.yaml\nshape: {name: square, side: 2}\n"))
    assert renamed.shape == {"name": "square", "side": 2, "colour": "red"}
    same = load(Outer, write("b.yaml", "extends: base.yaml\nshape: {name: circle, hollow: true}\n"))
    assert same.shape == {"name": "circle", "radius": 3.0, "hollow": True}
    tuned = load(Outer, write("c.yaml", "extends: base.yaml\nshape: {radius: 4}\n"))
    assert tuned.shape == {"name": "circle", "radius": 4.0, "hollow": False}


def test_a_run_of_another_name_keeps_the_settings_of_the_base(write):
    write("base.yaml", "run: {name: a, epochs: 3}\n")
    path = write("c.yaml", "extends: base.yaml\nrun: {name: b}\n")
    assert read(path) == {"run": {"name": "b", "epochs": 3}}


def test_merge_leaves_its_arguments_alone():
    base, over = {"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}}
    assert merge(base, over) == {"a": {"b": 2, "c": [1]}}
    assert (base, over) == ({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}})


# -- files --------------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_nearest(write):
    path = write("photos.yaml", "size: 1\n")
    with pytest.raises(FileNotFoundError, match=r"photo\.yaml; did you mean '.*photos\.yaml'\?"):
        load(Outer, path.with_name("photo.yaml"))
    leaf = write("leaf.yaml", "extends: gone.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        load(Outer, leaf)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "not YAML"),
        ("- 1\n", "expected keys and values at the top, got list"),
        ("!!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(write, text, said):
    with pytest.raises(ConfigError, match=rf"bad\.yaml: {said}"):
        read(write("bad.yaml", text))


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_bytes("größe: 1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        read(tmp_path / "bad.yaml")


def test_an_empty_file_lacks_what_is_required(write):
    with pytest.raises(ConfigError, match="key 'shape' is missing"):
        load(Outer, write("empty.yaml", ""))


# -- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner.rate=0.25", {"inner": {"rate": 0.25}}),
        ("inner.rate=1e-3", {"inner": {"rate": 0.001}}),
        ("inner.names=[a, 'b']", {"inner": {"names": ["a", "b"]}}),
        ("inner.odds={x: 2}", {"inner": {"odds": {"x": 2.0}}}),
        ("inner.odds.x=2", {"inner": {"odds": {"x": 2.0}}}),
        ("size=7", {"size": 7}),
        ("paper=null", {"paper": None}),
        ("paper=", {"paper": None}),
        ("places.1.rate=9", {"places": [{"rate": 1.0}, {"rate": 9.0}]}),
        ("places.0={rate: 3}", {"places": [{"rate": 3.0}, {"rate": 2.0}]}),
        ("shape.radius=2", {"shape": {"radius": 2.0, "name": "circle"}}),
        ("shape={name: square, side: 3}", {"shape": {"name": "square", "side": 3}}),
    ],
)
def test_an_override_sets_its_key_and_no_other(write, text, expected):
    path = write("c.yaml", "size: 1\nshape: circle\nplaces: [{rate: 1}, {rate: 2}]\n")
    before, after = load(Outer, path).model_dump(), load(Outer, path, [text]).model_dump()

    def holds(found, wanted):
        if isinstance(wanted, dict):
            return all(holds(found[key], value) for key, value in wanted.items())
        if isinstance(wanted, list) and wanted and isinstance(wanted[0], dict):
            return all(holds(f, w) for f, w in zip(found, wanted, strict=True))
        return found == wanted

    assert holds(after, expected)
    top = next(iter(expected))
    assert {k: v for k, v in after.items() if k != top} == {
        k: v for k, v in before.items() if k != top
    }


def test_overrides_hold_over_the_whole_chain_and_the_last_wins(write):
    write("base.yaml", "size: 1\nshape: circle\n")
    path = write("leaf.yaml", "extends: base.yaml\nsize: 2\n")
    assert load(Outer, path, ["size=3", "size=4"]).size == 4


def test_an_override_by_a_mapping_is_merged_like_a_file():
    tree = {"inner": {"rate": 1, "names": ["a"]}}
    override(tree, ["inner={rate: 3}"])
    assert tree == {"inner": {"rate": 3, "names": ["a"]}}


def test_a_value_may_hold_an_equals_sign():
    tree: dict = {}
    override(tree, ["inner.names=['a=b']"])
    assert tree == {"inner": {"names": ["a=b"]}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size", "'size' is not of the form section.key=value"),
        ("=3", "'=3' is not of the form section.key=value"),
        ("size=[1", "the value is not YAML"),
        ("places.2.rate=1", "'2' is not one of 0..1"),
        ("places.first.rate=1", "'first' is not one of 0..1"),
        ("inner.names.0.x=1", "'0' is the value 'a', which has no keys"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(text, said):
    tree = {"places": [{}, {}], "inner": {"names": ["a"]}}
    with pytest.raises(ConfigError) as caught:
        override(tree, [text])
    assert said in str(caught.value)


def test_a_fault_of_an_override_names_its_key(write):
    path = write("c.yaml", "size: 1\nshape: circle\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: 'inner\.rate': .*greater than 0, got -1"):
        load(Outer, path, ["inner.rate=-1"])


# -- checking -----------------------------------------------------------------------------------


def test_every_fault_has_its_line_with_file_and_key():
    tree = {"shape": {"name": "circle", "radius": -1}, "inner": {"rte": 1, "names": "a"}}
    found = faults(tree)
    assert len(found) == 4
    assert all(line.startswith("some.yaml: ") for line in found)
    said = "\n".join(found)
    assert "'shape.radius': Input should be greater than 0, got -1" in said
    assert "unknown key 'inner.rte'; did you mean 'rate'?" in said
    assert "'inner.names': Input should be a valid list, got 'a'" in said
    assert "key 'size' is missing" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["siez=3"], "unknown key 'siez'; did you mean 'size'?"),
        (["inner.qqq=3"], "unknown key 'inner.qqq'; allowed: rate, names, odds"),
        (["places=[{}, {rat: 1}]"], "unknown key 'places.1.rat'; did you mean 'rate'?"),
        (["shape.radios=3"], "unknown key 'shape.radios'; did you mean 'radius'?"),
        (["shape=circel"], "'shape.name': no shape is called 'circel'; did you mean 'circle'?"),
        (["shape=square"], "key 'shape.side' is missing"),
        (["shape={radius: 3}"], "'shape'"),
        (["shape={name: 3}"], "'shape' must name a shape, one of: circle, frame, square"),
        (["shape={name: square, side: a}"], "'shape.side': Input should be a valid integer"),
        (["shape={name: square, side: 1, colour: green}"], "'shape.colour': Input should be 'red'"),
        (["paper={name: drawing}"], "key 'paper.main' is missing"),
        (["paper={name: drawing, main: {name: circle, radius: x}}"], "'paper.main.radius'"),
        (
            ["paper={name: drawing, main: circle, others: [circle, {name: cirle}]}"],
            "'paper.others.1.name': no shape is called 'cirle'; did you mean 'circle'?",
        ),
        (
            ["paper={name: drawing, main: circle, named: {a: {name: square}}}"],
            "key 'paper.named.a.side' is missing",
        ),
        (["inner.odds={'{x}': '{y}'}"], "'inner.odds.{x}': "),
    ],
)  # fmt: skip
def test_a_fault_names_key_reason_and_nearest(overrides, said):
    tree = {"size": 1, "shape": {"name": "circle"}}
    if overrides[0].startswith("shape={radius"):
        tree = {"size": 1}  # a mapping without a name
    found = faults(tree, overrides)
    assert len(found) == 1, found
    assert said in found[0]


def test_norwegian_without_quotes_is_told_apart_from_a_truth_value():
    found = faults(yaml.safe_load("{size: 1, shape: circle, inner: {names: [en, no]}}"))
    assert len(found) == 1
    assert "'inner.names.1': Input should be a valid string, got False" in found[0]
    assert "quote it: 'no'" in found[0]


def test_our_own_sentence_comes_without_a_prefix_or_the_whole_section():
    class Length(Section):
        steps: int | None = None
        unit: str = "m"

        @field_validator("unit")
        @classmethod
        def _metric(cls, unit: str) -> str:
            if unit != "m":
                raise ValueError("only metres here")
            return unit

        @model_validator(mode="after")
        def _given(self) -> Length:
            if self.steps is None:
                raise ValueError("give {steps}")
            return self

    class Whole(Section):
        run: Length

    with pytest.raises(ConfigError) as caught:
        check(Whole, {"run": {"unit": "m"}}, where="c.yaml")
    assert str(caught.value) == "c.yaml: 'run': give {steps}"
    with pytest.raises(ConfigError) as caught:
        check(Whole, {"run": {"unit": "ft"}}, where="c.yaml")
    assert str(caught.value) == "c.yaml: 'run.unit': only metres here, got 'ft'"


def test_a_wrong_part_is_told_before_any_is_built():
    spec = {"name": "drawing", "main": "circle", "others": ["circle", {"name": "square"}]}
    with pytest.raises(ConfigError, match=r"paper: key 'others\.1\.side' is missing"):
        build(papers, spec)
    assert not BUILT


# -- building -----------------------------------------------------------------------------------


def test_nested_parts_are_built_in_place():
    drawing = build(
        papers,
        {
            "name": "drawing",
            "main": {"name": "circle", "radius": 2},
            "others": ["circle", {"name": "square", "side": 3}],
            "named": {"a": {"name": "square", "side": 4}},
        },
    )
    assert isinstance(drawing.main, Circle)
    assert drawing.main.radius == 2.0
    assert [type(shape) for shape in drawing.others] == [Circle, Square]
    assert drawing.named["a"].side == 4
    assert drawing.maybe is None


def test_a_part_that_wants_arguments_of_the_code_becomes_a_factory():
    spec = {"name": "drawing", "main": "circle", "border": {"name": "frame", "thickness": 5}}
    border = build(papers, spec).border(30)
    assert (border.width, border.thickness) == (30, 5)
    assert build(shapes, "frame", 7).width == 7
    assert build(papers, {"name": "drawing", "main": "circle"}).border(1).thickness == 1


def test_positional_arguments_are_no_options_of_a_config():
    with pytest.raises(ConfigError, match="unknown key 'width'"):
        check_part(shapes, {"name": "frame", "width": 3})


def test_options_of_the_code_go_over_those_of_the_spec():
    assert build(shapes, {"name": "circle", "radius": 2}, radius=3).radius == 3.0


def test_check_part_fills_in_every_default():
    assert check_part(papers, {"name": "drawing", "main": "circle"}) == {
        "name": "drawing",
        "main": {"name": "circle", "radius": 1.0, "hollow": False},
        "others": [],
        "named": None,
        "border": {"name": "frame", "thickness": 1},
        "maybe": None,
    }


def test_what_a_part_refuses_is_a_config_error_that_names_it():
    with pytest.raises(ConfigError, match="shape 'square': 13 brings bad luck"):
        build(shapes, {"name": "square", "side": 13})
    with pytest.raises(DataError, match=r"^data\.jsonl:3: broken$"):
        build(shapes, {"name": "square", "side": 14})


def test_an_option_without_a_type_is_our_own_bug():
    @shapes.register("untyped")
    class Untyped:
        def __init__(self, *, option=1):
            pass

    with pytest.raises(TypeError, match=r"Untyped: option 'option' has no type"):
        check_part(shapes, "untyped")
    del shapes._parts["untyped"]


# -- writing ------------------------------------------------------------------------------------


def test_a_dumped_config_loads_again_to_the_same(write):
    path = write(
        "c.yaml",
        "size: 1\nshape: circle\ninner: {rate: 1.0e-7, names: ['no', 'null', '1', 你好], odds: {de: 3}}\n"
        "paper: {name: drawing, main: {name: square, side: 2}}\n",
    )
    first = load(Outer, path)
    text = dump(first)
    assert load(Outer, write("again.yaml", text)) == first
    assert "你好" in text
    assert list(yaml.safe_load(text)) == list(Outer.model_fields)


def test_a_value_of_several_kinds_gets_one_line_with_its_own_key():
    with pytest.raises(ConfigError) as caught:
        check(RunConfig, {"steps": 1, "micro_batch": 0})
    assert str(caught.value) == (
        "config: 'micro_batch': Input should be greater than 0; or: Input should be 'auto', got 0"
    )
