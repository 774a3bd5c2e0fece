"""How noisy real machine translation is, where people have written what it should say.

python -m xlcm.translation.noise ../shared/data

prints the table of `docs/data/translation_noise.md`. Four figures a language:

- **chrF** and **BLEU** of sacreBLEU, over the corpus. They count paraphrases as faults, and can't
  be compared between scripts.
- **found**, adequacy without embeddings: the share of the translations that are nearer to their own
  reference than to 999 others of the set, by chrF's overlap of rare character sequences. A
  paraphrase still finds its own; a translation of which the telling words are wrong doesn't.
- **like scenes at**: the noise rate of the scenes benchmark at which the same share is found there,
  among as many captions. There the references have no paraphrases, so this is the most that the
  noise can be.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from xlcm.translation.quality import tokenizer_of

ORDERS = (2, 3, 4)  # characters; single ones tell nothing
AMONG = 1000  # references: the share found falls with their number
SCENES_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Noise:
    """How translations compare with references.

    Args:
        pairs: how many.
        chrf: of the corpus, 0 to 100.
        bleu: of the corpus, 0 to 100, with sacreBLEU's tokenizer for the language.
        found: share in 0 to 1 whose nearest reference is their own, among `AMONG` at most.
    """

    pairs: int
    chrf: float
    bleu: float
    found: float


def compare(translations: Sequence[str], references: Sequence[str], lang: str) -> Noise:
    """Compare translations with what people wrote for the same sources, one reference each.

    Raises:
        ValueError: if there are not as many of both, or none.
    """
    if len(translations) != len(references) or not references:
        raise ValueError(
            f"{len(translations)} translations and {len(references)} references: they must be as "
            "many, and some"
        )
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    given, wanted = list(translations), [list(references)]
    return Noise(
        len(references),
        CHRF().corpus_score(given, wanted).score,
        BLEU(tokenize=tokenizer_of(lang)).corpus_score(given, wanted).score,
        found(translations, references),
    )


def found(translations: Sequence[str], references: Sequence[str], among: int = AMONG) -> float:
    """Return the share of translations whose nearest reference is their own.

    Of more than `among` references, blocks of equally many of them are taken in turn, in their
    order, so that sets of several thousand can be compared with others of one thousand.

    Nearness is the cosine of weighted counts of sequences of 2 to 4 characters; the weight is the
    logarithm of how rare a sequence is among the references. References that are equal to one's own
    count as one's own.
    """
    count = len(references)
    ends = np.linspace(0, count, -(-count // among) + 1).round().astype(int)
    blocks = [slice(*ends[i : i + 2]) for i in range(len(ends) - 1)]
    return sum(_right(translations[block], references[block]) for block in blocks) / count


def _right(translations: Sequence[str], references: Sequence[str]) -> int:
    """Return how many translations find their own reference."""
    counted = [_sequences(text) for text in references]
    rarity = Counter(name for counts in counted for name in counts)
    number = {name: i for i, name in enumerate(rarity)}
    weights = np.array([log((1 + len(references)) / n) for n in rarity.values()], dtype=np.float32)
    matrix = _rows(counted, number, weights)  # (references, sequences)
    right = 0
    for start in range(0, len(translations), 256):
        asked = [_sequences(text) for text in translations[start : start + 256]]
        scores = _rows(asked, number, weights) @ matrix.T
        own = scores[np.arange(len(asked)), start + np.arange(len(asked))]
        right += int(((own >= scores.max(axis=1) - 1e-6) & (own > 0)).sum())
    return right


def _sequences(text: str) -> Counter[str]:
    padded = f" {' '.join(text.casefold().split()).rstrip('.。')} "
    return Counter(
        padded[i : i + order] for order in ORDERS for i in range(len(padded) - order + 1)
    )


def _rows(
    counted: Sequence[Counter[str]], number: dict[str, int], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    rows = np.zeros((len(counted), len(number)), dtype=np.float32)
    for row, counts in zip(rows, counted):
        for name, n in counts.items():
            if (column := number.get(name)) is not None:
                row[column] = 1 + log(n)
    rows *= weights
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


# -- the same in scenes ---------------------------------------------------------------------------


@functools.cache
def scenes_noise(lang: str, rate: float, size: int = 1000, seed: int = 0) -> Noise:
    """Compare the machine's captions of scenes with the same sentences without mistakes.

    Args:
        lang: one of the languages of scenes but English.
        rate: share of wrong captions, 0 to 1.
        size: captions.
        seed: of the scenes.
    """
    from xlcm.data.scenes import Scenes

    made = []
    for share in (rate, 0.0):  # the rate changes nothing else: the same sentence, right
        data = Scenes(
            size=size, target_langs=[lang], captions=1, noise_rate=share, seed=seed, cache=None
        )
        made.append([c.text for i in range(size) for c in data[i].captions if c.origin == "mt"])
    return compare(made[0], made[1], lang)


def like_scenes(share: float, curve: Sequence[tuple[float, float]]) -> str:
    """Return the noise rate at which scenes find the same share, as it is printed.

    Args:
        share: found, of real translations.
        curve: (noise rate, share found) of scenes, by falling share.
    """
    rates, shares = zip(*sorted(curve))
    if share >= shares[0]:
        return "0"
    if share < shares[-1]:
        return f"over {rates[-1]:g}"
    return f"{np.interp(-share, -np.array(shares), rates):.2f}"


def main(root: str) -> int:
    """Print the tables for the folder of real captions."""
    from xlcm.translation.noise_sets import comparisons

    curves: dict[str, list[tuple[float, float]]] = {}
    print("| scenes | noise rate | chrF | BLEU | found |\n|---|---|---|---|---|")
    for lang in ("de", "zh"):
        for rate in SCENES_RATES:
            noise = scenes_noise(lang, rate)
            curves.setdefault(lang, []).append((rate, noise.found))
            print(f"| {lang} | {rate:g} | {_figures(noise)} |", flush=True)
    print("\n| into | engine | set | captions | chrF | BLEU | found | like scenes at |")
    print("|---|---|---|---|---|---|---|---|")
    for one in comparisons(root):
        noise = compare(one.translations, one.references, one.lang)
        curve = curves["zh" if tokenizer_of(one.lang) != "13a" else "de"]
        like = like_scenes(noise.found, curve) if one.parallel else "-"
        print(f"| {one.lang} | {one.engine} | {one.name} | {noise.pairs:,} | {_figures(noise)} | "
              f"{like} |", flush=True)  # fmt: skip
    return 0


def _figures(noise: Noise) -> str:
    return f"{noise.chrf:.1f} | {noise.bleu:.1f} | {100 * noise.found:.1f} %"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
