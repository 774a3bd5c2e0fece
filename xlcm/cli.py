"""`xlcm data | evaluate | ...`: finds the sub-command, imports only its module, runs it.

A group of commands is a module with `add_arguments(parser)` and `run(args) -> int`, the exit
code. To add one, write the module and name it in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "data": ("xlcm.data.commands", "check, count, import manifests; train a tokenizer"),
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


def _expected(error: Exception) -> bool:
    """Whether the user's input is at fault, so that a message serves better than a traceback."""
    from xlcm.config import ConfigError
    from xlcm.data.manifest import DataError

    return isinstance(error, ConfigError | DataError | FileNotFoundError)


if __name__ == "__main__":
    sys.exit(main())
