"""From a YAML file and the command line to checked arguments, and from arguments to parts.

The signature of a part is its schema: keyword-only arguments are options that a config may set;
positional arguments are handed over by the code that builds it. A file may say
`extends: other.yaml`; `section.key=value` on the command line overrides. Every name and
option is checked before any part is built, and a fault names the file, the key and the nearest
known name.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from xlcm.registry import Registry, nearest

M = TypeVar("M", bound=BaseModel)
LABELLED = ("run",)  # sections whose `name` is a label and not that of a part


class ConfigError(ValueError):
    """A config that can't be used; the message lists every fault found."""


class Section(BaseModel):
    """Base of the fixed sections of a config: unknown keys are faults."""

    # JSON, and so the config that a run keeps, has no infinity
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class Part:
    """Marks an argument that another part fills: `Annotated[nn.Module, Part(heads, "linear")]`.

    In a config it is a mapping with a `name` and the options of that part (or just the name).

    Args:
        registry: where the name is looked up.
        default: the name taken when the config is silent; None: as the signature says.
    """

    def __init__(self, registry: Registry, default: str | None = None) -> None:
        self.registry = registry
        self.default = default


# -- reading ------------------------------------------------------------------------------------


def load(schema: type[M], path: str | Path, overrides: Sequence[str] = ()) -> M:
    """Read a YAML file, follow `extends`, apply overrides and check the whole tree.

    Args:
        schema: the pydantic model of the file.
        path: the YAML file.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        ConfigError: with the file and one line a fault.
        FileNotFoundError: if the file, or one that it extends, is missing.
    """
    tree = read(path)
    override(tree, overrides)
    return check(schema, tree, where=str(path))


def read(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file as nested dicts, merged over the files that it extends."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}" + _beside(path))
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: `extends` goes round in a circle")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: `extends` takes a file or a list of files, got {parents!r}")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = merge(merged, read(path.parent / parent, (*_seen, path.resolve())))
    return merge(merged, tree)


def merge(base: Any, over: Any) -> Any:
    """Lay `over` on `base`, key by key.

    Where both name a part and the names differ, nothing of the base's options is kept: they
    belong to another class. The name of a `run` is a label, no part.
    """
    return _merge(base, over, key="")


def _merge(base: Any, over: Any, key: str) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    named = key not in LABELLED and "name" in over and "name" in base
    if named and over["name"] != base["name"]:
        return over
    return {**base, **{k: _merge(base[k], v, k) if k in base else v for k, v in over.items()}}


def override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `section.key=value` in nested dicts, the value in YAML; sections are made if need be.

    Raises:
        ConfigError: if one is not of this form, or names a place in a list that is not there.
    """
    for text in overrides:
        _override(tree, text)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    *sections, last = key.split(".")
    here: Any = tree
    for name in sections:
        if isinstance(here, list):
            here = here[_index(here, name, override)]
            if not isinstance(here, dict | list):
                raise ConfigError(f"override {override!r}: {name!r} is the value {here!r}, which "
                                  "has no keys: give it whole")  # fmt: skip
            continue
        if isinstance(here.get(name), str):  # a part given by its name alone
            here[name] = {"name": here[name]}
        if not isinstance(here.get(name), dict | list):
            here[name] = {}
        here = here[name]
    if isinstance(here, list):
        here[_index(here, last, override)] = value
    else:
        here[last] = merge(here.get(last), value)


def _index(items: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise ConfigError(f"override {override!r}: {name!r} is not one of 0..{len(items) - 1}")
    return int(name)


def _beside(path: Path) -> str:
    known = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    return nearest(str(path), known)


# -- checking -----------------------------------------------------------------------------------


def check(schema: type[M], tree: Mapping[str, Any], where: str = "config") -> M:
    """Validate nested dicts against a pydantic model.

    Raises:
        ConfigError: one line a fault, each with `where`, the key and the remedy.
    """
    try:
        return schema.model_validate(dict(tree))
    except ValidationError as error:
        lines = _explain(error, schema, tree)
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def check_part(registry: Registry, spec: Any) -> dict[str, Any]:
    """Return the spec of a part with every default filled in.

    Args:
        registry: the kind of part.
        spec: `{"name": ..., option: value}`, or the name alone.

    Raises:
        ConfigError: for an unknown name, and unknown, missing or ill-typed options.
    """
    try:
        return _check_part(registry, spec)
    except PydanticCustomError as error:
        lines = (error.context or {}).get("lines", [("", error.message())])
        raise ConfigError(
            "\n".join(f"{registry.kind}: {text.format(key=key)}" for key, text in lines)
        ) from None


def _check_part(registry: Registry, spec: Any) -> dict[str, Any]:
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        text = f"'{{key}}' must name a {registry.kind}, one of: {', '.join(registry)}"
        raise PydanticCustomError("part", "part", {"lines": [("", text)]})
    name = spec["name"]
    try:
        part = registry.get(name)
    except KeyError as error:
        text = "'{key}': " + str(error.args[0])
        raise PydanticCustomError("part", "part", {"lines": [("name", text)]}) from None
    schema = signature_schema(part)
    try:
        options = schema.model_validate({k: v for k, v in spec.items() if k != "name"})
    except ValidationError as error:
        raise PydanticCustomError(
            "part", "part", {"lines": _explain_lines(error, schema, spec)}
        ) from None
    return {"name": name, **options.model_dump()}


def _explain(error: ValidationError, schema: type[BaseModel], given: Any) -> list[str]:
    # a fault of the whole has no key
    return [
        text.format(key=key).removeprefix("'': ")
        for key, text in _explain_lines(error, schema, given)
    ]


def _explain_lines(
    error: ValidationError, schema: type[BaseModel], given: Any
) -> list[tuple[str, str]]:
    """Return (key, sentence with a `{key}` to fill in) for every fault, nested parts flattened."""
    lines: list[tuple[str, str]] = []
    for fault in error.errors(include_url=False):
        key = _key(fault, given)
        if fault["type"] == "part":
            for inner, text in fault["ctx"]["lines"]:
                lines.append((f"{key}.{inner}".strip("."), text))
        elif fault["type"] == "extra_forbidden":
            known = _keys_at(schema, fault["loc"][:-1])
            hint = nearest(str(fault["loc"][-1]), known) or (
                f"; allowed: {', '.join(known)}" if known else ""
            )
            lines.append((key, "unknown key '{key}'" + _braces(hint)))
        elif fault["type"] == "missing":
            lines.append((key, "key '{key}' is missing"))
        else:
            text, came = _braces(_sentence(fault)), _braces(f", got {fault['input']!r}")
            if lines and lines[-1][0] == key and lines[-1][1].endswith(came):  # of another kind
                lines[-1] = (key, f"{lines[-1][1].removesuffix(came)}; or: {text}")
            else:
                lines.append((key, "'{key}': " + text))
    return lines


def _key(fault: Mapping[str, Any], given: Any) -> str:
    """Return where a fault is, without pydantic's names for the kinds that a value may have."""
    steps: list[str] = []
    for number, step in enumerate(fault["loc"]):
        try:
            given = given[step]
        except (KeyError, IndexError, TypeError):
            if fault["type"] != "missing" or number < len(fault["loc"]) - 1:
                continue
        steps.append(str(step))
    return ".".join(steps)


def _sentence(fault: Mapping[str, Any]) -> str:
    """Return pydantic's sentence with what came; our own sentence without pydantic's prefix."""
    text, came = fault["msg"], fault["input"]
    if fault["type"] == "value_error":
        text = str(fault["ctx"]["error"])
        if isinstance(came, Mapping | BaseModel):  # a whole section says nothing about the fault
            return text
    text += f", got {came!r}"
    if fault["type"] == "string_type" and isinstance(came, bool):
        text += " (YAML takes a bare no, yes, on or off for one; quote it: 'no')"
    return text


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _keys_at(schema: type[BaseModel], steps: Sequence[Any]) -> list[str]:
    for step in steps:
        field = schema.model_fields.get(str(step))
        found = _flatten(field.annotation) if field else []
        inner = [t for t in found if inspect.isclass(t) and issubclass(t, BaseModel)]
        if field is not None and not inner:
            return []
        schema = inner[0] if inner else schema  # an index into a list or mapping: stay
    return list(schema.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    return [annotation] if not arguments else [t for a in arguments for t in _flatten(a)]


# -- signatures ---------------------------------------------------------------------------------


@functools.cache
def signature_schema(part: type) -> type[BaseModel]:
    """Return the pydantic model of a part's keyword-only arguments.

    Raises:
        TypeError: if an option has no annotation (our own bug).
    """
    hints = _hints(part)
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(part).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if name not in hints:
            raise TypeError(f"{part.__qualname__}: option {name!r} has no type")
        hint, default = hints[name], parameter.default
        marker = _marker(hint)
        if marker is not None and marker.default is not None:
            default = {"name": marker.default}
        elif default is inspect.Parameter.empty:
            default = ...
        options[name] = (_field_type(hint), default)
    return create_model(
        part.__name__,
        __config__=ConfigDict(
            extra="forbid", validate_default=True, arbitrary_types_allowed=True,
            protected_namespaces=(), allow_inf_nan=False,
        ),
        **options,
    )  # fmt: skip


def _hints(part: type) -> dict[str, Any]:
    """Return the types of a constructor's arguments as they are written.

    Python 3.10 puts `Optional[...]` around an argument whose default is None, which would hide a
    `Part` inside; so it is asked about a copy without defaults.
    """
    init: Any = part.__init__  # type: ignore[misc]
    if inspect.isfunction(init):
        bare = types.FunctionType(
            init.__code__, init.__globals__, init.__name__, None, init.__closure__
        )
        bare.__annotations__ = init.__annotations__
        init = bare
    return typing.get_type_hints(init, include_extras=True)


def _marker(hint: Any) -> Part | None:
    found = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Part)]
    return found[0] if found else None


def _field_type(hint: Any) -> Any:
    """Replace every argument marked `Part` by a checked dict, inside lists and dicts too."""
    marker = _marker(hint)
    if marker is not None:
        checked = part_field(marker.registry)
        base = typing.get_args(hint)[0]
        return checked | None if type(None) in typing.get_args(base) else checked
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return Union[tuple(_field_type(a) for a in arguments)]  # noqa: UP007
    if origin in (list, dict, tuple):
        return origin[tuple(_field_type(a) for a in arguments)]
    return hint


# -- building -----------------------------------------------------------------------------------


def build(registry: Registry, spec: Any, /, *given: Any, **options: Any) -> Any:
    """Check a spec and make the part that it names.

    Parts nested in its options are made first; one whose constructor also wants positional
    arguments (a head wants widths) is handed over as a factory that takes them.

    Args:
        registry: the kind of part.
        spec: `{"name": ..., option: value}`, or the name alone.
        given: the positional arguments that the code hands over.
        options: options that the code sets, over those of the spec.

    Raises:
        ConfigError: for a spec that is not one, or options that a part refuses together.
    """
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    return _make(registry, check_part(registry, {**spec, **options}), given)


def _make(registry: Registry, spec: Mapping[str, Any], given: Sequence[Any] = ()) -> Any:
    part = registry.get(spec["name"])
    hints = _hints(part)
    options = {k: _fill(hints[k], v) for k, v in spec.items() if k != "name"}
    if not given and _wants_positional(part):
        return functools.partial(part, **options)
    try:
        return part(*given, **options)
    except ValueError as error:
        if type(error) is not ValueError:  # such as DataError, which says more
            raise
        raise ConfigError(f"{registry.kind} {spec['name']!r}: {error}") from error


def _fill(hint: Any, value: Any) -> Any:
    """Turn checked specs inside a value into parts, where the type says that they are some."""
    if value is None:
        return None
    marker = _marker(hint)
    if marker is not None:
        return _make(marker.registry, value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        marked = [a for a in arguments if _field_type(a) is not a and a is not type(None)]
        return _fill(marked[0], value) if marked else value
    if origin is list and isinstance(value, list):
        return [_fill(arguments[0], inner) for inner in value]
    if origin is dict and isinstance(value, dict):
        return {key: _fill(arguments[1], inner) for key, inner in value.items()}
    return value


def _wants_positional(part: type) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        p.kind in kinds and p.default is inspect.Parameter.empty
        for p in inspect.signature(part).parameters.values()
    )


# -- writing ------------------------------------------------------------------------------------


def dump(config: BaseModel | Mapping[str, Any]) -> str:
    """Return the resolved config as YAML, in the order of the schema."""
    tree = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def part_field(registry: Registry) -> Any:
    """Return the type of a section's key that names a part of one kind.

    In a JSON schema it is marked by `part`, the registry's kind (`xlcm.schema` expands it).
    """
    return Annotated[
        dict[str, Any],
        BeforeValidator(functools.partial(_check_part, registry)),
        Field(json_schema_extra={"part": registry.kind}),
    ]
