"""The config of `recipes/translate.py` and `xlcm translate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xlcm.config import Section, part_field
from xlcm.data.languages import language_fault
from xlcm.translation.engines import engines
from xlcm.types import Origin

Signal = Literal["back", "length", "copied", "script", "language"]


class TranslateConfig(Section):
    """Which captions are translated, into what, by what.

    Args:
        manifest: whose captions are translated; it is not changed.
        output: the manifest with the translations added; may be the same file.
        engine: `{name: seq2seq, model: ...}`, `{name: command, command: ...}` or `scenes_table`.
        source: language of the captions that are translated.
        targets: languages to translate into.
        origins: which captions of the source language are translated.
        splits: of these splits only; None: all.
        back: translate the translations back into the source language.
        quality: signals that are written beside each translation, see `xlcm.translation.quality`.
        similarity: folder or hub id of a saved model: the cosine of its vectors of a caption and
            of its translation is written too.
        batch_size: lines at once for each process.
        memory: folder of what has been translated so far; None: `<output>.memory`.
        keep_paths: write paths of pictures as they are, for use with `image_root`; false: they
            start from the output's folder.
    """

    manifest: str
    output: str
    engine: part_field(engines)  # type: ignore[valid-type]
    source: str = "en"
    targets: Annotated[list[str], Field(min_length=1)]
    origins: Annotated[list[Origin], Field(min_length=1)] = ["human"]
    splits: Annotated[list[str], Field(min_length=1)] | None = None
    back: bool = True
    quality: list[Signal] = ["back", "length", "copied", "script"]
    similarity: str | None = None
    batch_size: Annotated[int, Field(gt=0)] = 64
    memory: str | None = None
    keep_paths: bool = False

    @model_validator(mode="after")
    def _languages(self) -> TranslateConfig:
        for key, langs in (("source", [self.source]), ("targets", self.targets)):
            for lang in langs:
                if fault := language_fault(lang):
                    raise ValueError(f"`{key}`: {fault}")
        if self.source in self.targets:
            raise ValueError(f"`targets` has the source language {self.source!r}")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"`targets` names a language twice: {', '.join(self.targets)}")
        return self
