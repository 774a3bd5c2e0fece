"""JSON schema of a whole config with every registered part, so that editors complete YAML.

`xlcm schema train > train.json`, and as the first line of a config:
`# yaml-language-server: $schema=train.json`
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from xlcm import registry
from xlcm.config import ConfigError, signature_schema
from xlcm.registry import Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SECTIONS = {
    "train": "xlcm.training.settings:TrainConfig",
    "encode": "xlcm.data.encode_settings:EncodeConfig",
    "evaluate": "xlcm.evaluation.settings:EvaluateConfig",
    "benchmark": "xlcm.training.grid_settings:GridConfig",
    "translate": "xlcm.translation.settings:TranslateConfig",
}
"""Recipe -> `module:Class` of its config."""
STAGES = {"train": "xlcm.training.stages:Stage"}
"""Recipe whose config may hold `stages` -> `module:Class` of one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `xlcm schema`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", choices=list(SECTIONS), help="whose config")
    parser.add_argument("--import", dest="modules", nargs="+", default=[], metavar="MODULE",
                        help="modules that register parts of your own")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the schema; return the exit code."""
    if args.modules:
        sys.path.insert(0, "")  # a console script does not look in the working directory
    for module in args.modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(f"--import {module}: {error}; start where it can be imported, or set "
                              "PYTHONPATH") from error  # fmt: skip
    print(json.dumps(export(args.recipe), ensure_ascii=False, indent=1))
    return 0


def export(recipe: str) -> dict[str, Any]:
    """Return the JSON schema (2020-12) of a recipe's config.

    A file that `extends` another may leave out whatever that one gives, and one with `stages`
    whatever all of them give, so for such files nothing is required; types, ranges and unknown
    keys are checked all the same.

    Args:
        recipe: a key of `SECTIONS`.
    """
    section = _model(SECTIONS[recipe])
    definitions: dict[str, Any] = {}
    whole = _Export(definitions, extending=False).section(section)
    partly = _Export(definitions, extending=True)
    extending = partly.section(section)
    partial = ["extends"]
    if recipe in STAGES:
        partial.append("stages")
        stages = partly.list_of(_model(STAGES[recipe]))
        for reference in (whole, extending):
            key = reference["$ref"].removeprefix("#/$defs/")
            definitions[key]["properties"]["stages"] = stages
    return {
        "$schema": DIALECT,
        "title": f"config of recipes/{recipe}.py",
        "type": "object",
        "if": {"anyOf": [{"required": [key]} for key in partial]},
        "then": extending,
        "else": whole,
        "$defs": definitions,
    }


class _Export:
    """Writes definitions; those for files that extend others have a prefix and ask for nothing."""

    def __init__(self, definitions: dict[str, Any], *, extending: bool) -> None:
        self.definitions = definitions
        self.extending = extending

    def section(self, section: type[BaseModel]) -> dict[str, Any]:
        """Define the section at the top of a file and all below it; return a reference to it."""
        reference = self._define(section.__name__, section.model_json_schema())
        self.definitions[self._key(section.__name__)]["properties"]["extends"] = {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "YAML file, or files, that this one is laid over; from its folder.",
        }
        return reference

    def list_of(self, stage: type[BaseModel]) -> dict[str, Any]:
        """Return a list of stages, each of which needs a name and may leave out all else."""
        reference = self._define(stage.__name__, stage.model_json_schema())
        self.definitions[self._key(stage.__name__)]["required"] = ["name"]
        return {
            "type": "array",
            "items": reference,
            "minItems": 1,
            "description": "Runs one after the other, each laid over the rest of the file.",
        }

    def _key(self, name: str) -> str:
        return ("extending." if self.extending else "") + re.sub(r"[^\w.]", "_", name)

    def _reference(self, name: str) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self._key(name)}"}

    def _define(self, name: str, schema: Mapping[str, Any], about: str = "") -> dict[str, Any]:
        """Add what pydantic wrote about a model, and the models inside, to the definitions."""
        for inner, found in schema.get("$defs", {}).items():
            if self._key(inner) not in self.definitions:
                self._define(inner, {k: v for k, v in found.items() if k != "$defs"})
        self.definitions[self._key(name)] = self._object(schema, about)
        return self._reference(name)

    def _object(self, schema: Mapping[str, Any], about: str = "") -> dict[str, Any]:
        """Return an object's schema with the docstring's words beside each option."""
        said = about or schema.get("description", "")
        node = self._node(schema)
        if said:
            node["description"] = re.split(r"\n\s*\n", inspect.cleandoc(said))[0].replace("\n", " ")
        described = argument_docs(said)
        for option, inner in node.get("properties", {}).items():
            if option in described:
                inner["description"] = described[option]
        return node

    def _node(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Return one node of pydantic's schema, with parts in place of plain mappings."""
        if "part" in node:
            kept = {key: node[key] for key in ("default", "description") if key in node}
            return {**self._registry(_registries()[node["part"]]), **kept}
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key in ("title", "$defs") or (key == "required" and self.extending):
                continue
            if key == "$ref":
                value = self._reference(value.removeprefix("#/$defs/"))["$ref"]
            elif key == "properties":
                value = {option: self._node(inner) for option, inner in value.items()}
            elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
                value = [self._node(inner) for inner in value]
            elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
                value = self._node(value)
            out[key] = value
        return out

    def _registry(self, kind: Registry) -> dict[str, Any]:
        """Define a kind of part: any of its entries, or a bare name where that is enough."""
        if self._key(kind.kind) not in self.definitions:
            self.definitions[self._key(kind.kind)] = {}  # parts of a kind may hold the same kind
            parts = [self._part(kind, name) for name in kind]
            bare = [
                name
                for name in kind
                if self.extending
                or not any(f.is_required() for f in _options(kind, name).model_fields.values())
            ]
            names: list[dict[str, Any]] = [{"enum": bare}] if bare else []
            self.definitions[self._key(kind.kind)].update(
                description=f"a {kind.kind}: its name, or `name` and options",
                anyOf=parts + names,
            )
        return self._reference(kind.kind)

    def _part(self, kind: Registry, name: str) -> dict[str, Any]:
        schema = dict(_options(kind, name).model_json_schema())
        schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["name", *schema.get("required", [])]
        return self._define(f"{kind.kind}.{name}", schema, inspect.getdoc(kind.get(name)) or "")


def argument_docs(documentation: str) -> dict[str, str]:
    """Return argument -> its words from the `Args:` of a Google docstring."""
    lines = inspect.cleandoc(documentation).splitlines()
    found: dict[str, list[str]] = {}
    inside, current = False, ""
    for line in lines:
        if not line.startswith(" "):
            inside = line == "Args:" or (inside and not line)
        elif inside:
            start = re.match(r" {4}(\w+): (.*)", line)
            if start:
                current = start[1]
                found[current] = [start[2]]
            elif current:
                found[current].append(line.strip())
    return {name: " ".join(words).strip() for name, words in found.items()}


def _model(name: str) -> type[BaseModel]:
    module, _, found = name.partition(":")
    model: type[BaseModel] = getattr(importlib.import_module(module), found)
    return model


def _registries() -> dict[str, Registry]:
    from xlcm.translation.engines import engines

    known = [*vars(registry).values(), engines]
    return {one.kind: one for one in known if isinstance(one, Registry)}


def _options(kind: Registry, name: str) -> type[BaseModel]:
    return signature_schema(kind.get(name))
