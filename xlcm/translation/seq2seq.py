"""Any sequence-to-sequence model of transformers: NLLB, M2M-100, mBART-50, MADLAD, OPUS-MT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from xlcm.config import ConfigError
from xlcm.data.languages import language_name, three_letters
from xlcm.translation.codes import Family, model_code
from xlcm.translation.engines import engines

FAMILIES: dict[str, Family] = {
    "nllb-moe": "nllb", "mbart": "mbart50", "t5": "madlad", "marian": "marian"
}  # fmt: skip
"""The `model_type` of a model's config -> its family; `m2m_100` is that of NLLB and M2M alike."""

WAY_OUT = (
    "a model is a folder that transformers saved, or an id on the Hugging Face hub such as "
    "'facebook/nllb-200-distilled-600M' (fetched once, kept in $HF_HOME)"
)


@engines.register("seq2seq")
class Seq2Seq:
    """Translates with a model; each pair of languages opens what it needs when it is asked for.

    Args:
        model: folder or hub id, such as `facebook/nllb-200-distilled-600M`; `{source}` and
            `{target}` in it become the languages' BCP 47 codes, or what `names` says
            (`Helsinki-NLP/opus-mt-{source}-{target}`), one model a pair, one at a time in memory.
        family: how it is told the languages; None: by its config. `plain`: not at all, but for
            `prefix`.
        codes: BCP 47 -> what this model calls the language, before the library's table; not in
            the model's name.
        names: BCP 47 -> what `{source}` and `{target}` in `model` become, such as `{ja: jap}`.
        prefix: put before each text for `plain`, with `{source}` and `{target}` as English names.
        beams: 1 is greedy.
        max_new_tokens: longest translation; what reaches it is most often run away.
        dtype: of the weights; half precision is for GPUs.
        revision: branch, tag or commit on the hub.
    """

    def __init__(
        self,
        *,
        model: str,
        family: Literal["nllb", "m2m", "mbart50", "madlad", "marian", "plain"] | None = None,
        codes: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
        prefix: str = "",
        beams: Annotated[int, Field(ge=1)] = 4,
        max_new_tokens: Annotated[int, Field(ge=1)] = 128,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        revision: str | None = None,
    ) -> None:
        self.model, self.family, self.codes, self.prefix = model, family, dict(codes or {}), prefix
        self.names = dict(names or {})
        self.beams, self.max_new_tokens = beams, max_new_tokens
        self.dtype, self.revision = getattr(torch, dtype), revision
        self.label = model.rstrip("/").rpartition("/")[2].replace("{", "").replace("}", "")
        self.cut = 0
        self._device: Any = "cpu"
        self._opened = self._weighed = ""
        self._tokenizer: Any = None
        self._network: Any = None

    def check(self, source: str, target: str) -> None:
        """Open the tokenizer and see whether the model knows both languages.

        Raises:
            ConfigError: if it lacks one, or there is no such model.
        """
        self._open(source, target)
        self._languages(source, target)

    def to(self, device: Any) -> None:
        """Compute there from now on."""
        self._device = device
        if self._network is not None:
            self._network.to(device)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """Return the translations; where memory runs out, in halves."""
        self._open(source, target)
        self._weigh()
        prefix, forced = self._languages(source, target)
        return self._generate([prefix + text for text in texts], forced)

    def _generate(self, texts: list[str], forced: int | None) -> list[str]:
        try:
            return self._generate_at_once(texts, forced)
        except torch.OutOfMemoryError:
            if len(texts) == 1:
                raise
        half = len(texts) // 2
        return self._generate(texts[:half], forced) + self._generate(texts[half:], forced)

    def _generate_at_once(self, texts: list[str], forced: int | None) -> list[str]:
        longest = min(self._tokenizer.model_max_length, self._most_positions())
        lengths = [len(ids) for ids in self._tokenizer(texts)["input_ids"]]
        batch = self._tokenizer(
            texts, return_tensors="pt", padding=True, truncation=True, max_length=longest
        ).to(self._device)
        start = {} if forced is None else {"forced_bos_token_id": forced}
        room = self._most_positions() - 1  # of the decoder, less its first token
        with torch.inference_mode():
            out = self._network.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                num_beams=self.beams, do_sample=False, max_length=None,
                max_new_tokens=min(self.max_new_tokens, room), **start,
            )  # fmt: skip
        self.cut += sum(length > longest for length in lengths)  # here: not of a try that failed
        return self._tokenizer.batch_decode(out, skip_special_tokens=True)

    def _most_positions(self) -> int:
        return getattr(self._config, "max_position_embeddings", None) or 512

    def _open(self, source: str, target: str) -> None:
        from transformers import AutoConfig, AutoTokenizer

        name = self.model.replace("{source}", self.names.get(source, source))
        name = name.replace("{target}", self.names.get(target, target))
        if name == self._opened:
            return
        path = name.startswith(("/", ".", "~")) or name.count("/") > 1
        if path and not Path(name).is_dir():
            raise ConfigError(f"model {name!r}: there is no such folder; {WAY_OUT}")
        try:
            self._config = AutoConfig.from_pretrained(name, revision=self.revision)
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model {name!r} can't be opened: {error}\n{WAY_OUT}") from error
        self._opened = name

    def _weigh(self) -> None:
        from transformers import AutoModelForSeq2SeqLM

        if self._weighed == self._opened:
            return
        self._network = None  # the one before goes first
        network = AutoModelForSeq2SeqLM.from_pretrained(self._opened, revision=self.revision)
        self._network = network.to(self._device, self.dtype).eval()
        self._weighed = self._opened

    def _languages(self, source: str, target: str) -> tuple[str, int | None]:
        """Tell the tokenizer the source; return the prefix and the decoder's first token."""
        family = self.family or self._guess()
        if family == "plain":
            words = {"{source}": language_name(source), "{target}": language_name(target)}
            prefix = self.prefix
            for slot, word in words.items():
                prefix = prefix.replace(slot, word)
            return prefix, None
        codes = [self.codes.get(lang) or model_code(lang, family) for lang in (source, target)]
        if family == "marian":
            return self._marian(codes[1], target), None
        if family == "madlad":
            self._token(f"<2{codes[1]}>", target)
            return f"<2{codes[1]}> ", None
        wrapped = "__{}__" if family == "m2m" else "{}"
        self._token(wrapped.format(codes[0]), source)
        self._tokenizer.src_lang = codes[0]
        return "", self._token(wrapped.format(codes[1]), target)

    def _guess(self) -> Family:
        kind = self._config.model_type
        if kind == "m2m_100":
            return "nllb" if self._number("eng_Latn") is not None else "m2m"
        if kind not in FAMILIES:
            raise ConfigError(
                f"{self._opened}: a {kind!r} model doesn't say how it is told its languages; set "
                "the engine's `family` (`plain` for a model that is not told, or by a `prefix`)"
            )
        return FAMILIES[kind]

    def _marian(self, code: str, lang: str) -> str:
        """Return the mark of the target language, in models with several of them."""
        marks = getattr(self._tokenizer, "supported_language_codes", None) or []
        if not marks:
            return ""
        fitting = [m for m in marks if m.strip("><").replace("-", "_").split("_")[0] == code]
        fitting = fitting or [m for m in marks if m == f">>{three_letters(code)}<<"]
        if f">>{code}<<" in marks:
            fitting = [f">>{code}<<"]
        if lang not in self.codes:  # that of the very region or script, where there is one
            exact = lang.replace("-", "_").lower()
            fitting = [m for m in marks if m.strip("><").lower() == exact] or fitting
        if not fitting:
            raise ConfigError(
                f"{self._opened} has no target {code!r}, only {', '.join(marks)}; name the one "
                "that is meant in the engine's `codes`"
            )
        return fitting[0] + " "

    def _token(self, token: str, lang: str) -> int:
        number = self._number(token)
        if number is None:
            raise ConfigError(
                f"{self._opened} has no token {token!r} for {lang!r}; if it calls the language "
                f"otherwise, set the engine's `codes`: {{{lang}: ...}}, if it is of another "
                "family, `family`"
            )
        return number

    def _number(self, token: str) -> int | None:
        number = self._tokenizer.convert_tokens_to_ids(token)
        return None if number is None or number == self._tokenizer.unk_token_id else number
