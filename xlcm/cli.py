"""`xlcm data | evaluate | ...`: finds the sub-command, imports only its module, runs it.

A group of commands is a module with `add_arguments(parser)` and `run(args) -> int`, the exit
code. To add one, write the module and name it in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

COMMANDS = {
    "data": ("xlcm.data.commands", "check, count, import manifests; train a tokenizer"),
    "translate": ("xlcm.translation.commands", "captions in further languages, by machine"),
    "evaluate": ("xlcm.evaluation.commands", "recall by language of a saved model"),
    "export": ("xlcm.models.export_commands", "a saved model's towers for a faster engine"),
    "schema": ("xlcm.schema", "JSON schema of the configs, for editors"),
}
"""Name -> (module, help). The module is imported only when its command is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `xlcm` with these arguments (by default the process's own); return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="xlcm", description="Find images and videos from text in any language."
    )
    groups = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, help_text) in COMMANDS.items():
        group = groups.add_parser(name, help=help_text, description=help_text)
        if name in argv[:1]:
            importlib.import_module(module).add_arguments(group)
    args = parser.parse_args(argv)
    try:
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if not _expected(error):
            raise
        print(f"xlcm {args.command}: {error}", file=sys.stderr)
        return 2


def recipe(run: Callable[..., int], schema: str, documentation: str | None) -> int:
    """Run a recipe with the process's arguments: a config file and `section.key=value`.

    Args:
        run: takes the path and the overrides, returns the exit code.
        schema: for `--print-config`, `module:Class` of the config, or `module:function` that
            takes path and overrides and returns the text.
        documentation: what `--help` prints.

    Returns:
        The exit code: 2 for a fault of the user's input, which is told without a traceback. Of
        several processes with one fault, the first tells it (`xlcm.launched`).
    """
    arguments = [a for a in sys.argv[1:] if a != "--print-config"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print((documentation or "").strip())
        return 0 if arguments else 2
    from xlcm.launched import end_with_launcher, is_told

    end_with_launcher()
    name = Path(sys.argv[0]).name
    try:
        if "--print-config" in sys.argv:
            from xlcm.config import dump, load

            module, _, attribute = schema.partition(":")
            known = getattr(importlib.import_module(module), attribute)
            of_class = isinstance(known, type)
            path, overrides = arguments[0], arguments[1:]
            print(
                dump(load(known, path, overrides)) if of_class else known(path, overrides), end=""
            )
            return 0
        return run(*arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        expected = _expected(error)
        if is_told(error, name):
            return 2 if expected else 1
        if not expected:
            raise
        sys.stderr.write(f"{name}: {error}\n")  # at once: other processes write there too
        return 2


def _expected(error: Exception) -> bool:
    """Whether the user's input is at fault, so that a message serves better than a traceback."""
    from xlcm.config import ConfigError
    from xlcm.data.manifest import DataError

    return isinstance(error, ConfigError | DataError | OSError | FloatingPointError)


if __name__ == "__main__":
    sys.exit(main())
