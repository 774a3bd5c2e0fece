"""Any command that reads lines and writes their translations: for a commercial API, or a script."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from xlcm.config import ConfigError
from xlcm.data.manifest import DataError
from xlcm.translation.engines import engines


@engines.register("command")
class Command:
    """Runs a command once a batch: lines on its standard input, as many on its standard output.

    Args:
        command: the command line, split as a shell would, without a shell; `{source}` and
            `{target}` become the BCP 47 codes.
        label: what is written as the captions' `engine`.
        timeout_s: how long one batch may take, in seconds.
        tries: how often a batch is tried before the run stops.
    """

    def __init__(
        self,
        *,
        command: str,
        label: str,
        timeout_s: Annotated[float, Field(gt=0)] = 600.0,
        tries: Annotated[int, Field(ge=1)] = 3,
    ) -> None:
        self.command, self.label = command, label
        self.timeout_s, self.tries = timeout_s, tries
        self.cut = 0
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"command {command!r} can't be split into words: {error}") from error
        if not self._words:
            raise ConfigError("the engine's command is empty")

    def check(self, source: str, target: str) -> None:
        """Accept all: only the command knows its languages."""

    def to(self, device: Any) -> None:
        """Do nothing: the command chooses where it computes."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """Return what the command makes of the texts.

        Raises:
            DataError: if it fails each time, or writes more or fewer lines than it was given.
        """
        words = [w.replace("{source}", source).replace("{target}", target) for w in self._words]
        lines = "".join(text + "\n" for text in texts).encode()
        fault = ""
        for _ in range(self.tries):
            fault, out = self._once(words, lines)
            if not fault:
                found = out.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n") if out else []
                if len(found) == len(texts):
                    return self._decode(found)
                fault = f"wrote {len(found)} lines for {len(texts)}"
        raise DataError(
            f"command {self.command!r}, {source} to {target}, {self.tries} tries: {fault}; it has "
            "to write exactly one line for each that it reads. What was translated before is kept: "
            "start again when it works"
        )

    def _once(self, words: list[str], lines: bytes) -> tuple[str, bytes]:
        try:
            done = subprocess.run(words, input=lines, capture_output=True, timeout=self.timeout_s)
        except FileNotFoundError:
            raise ConfigError(f"there is no command {words[0]!r}") from None
        except OSError as error:
            raise ConfigError(f"command {words[0]!r} can't be started: {error}") from error
        except subprocess.TimeoutExpired:
            return f"not done after {self.timeout_s:g} s", b""
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return f"exit code {done.returncode}" + "".join(f": {line}" for line in said), b""
        return "", done.stdout

    def _decode(self, lines: list[bytes]) -> list[str]:
        try:
            return [line.decode() for line in lines]
        except UnicodeDecodeError as error:
            raise DataError(f"command {self.command!r} wrote no UTF-8: {error}") from error
