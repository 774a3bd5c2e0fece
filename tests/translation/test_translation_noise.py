"""How noise is measured: figures of sacreBLEU, and the share that finds its own reference."""

import gzip

import pytest

from xlcm.data.manifest import DataError
from xlcm.translation.noise import compare, found, like_scenes, scenes_noise
from xlcm.translation.noise_sets import comparisons

REFERENCES = [
    "A small boy plays football in the park.",
    "Two women sit at a table and drink tea.",
    "A dog jumps over a fallen tree.",
    "The man repairs an old bicycle.",
]


def test_perfect_translations_are_all_found_and_exchanged_ones_are_not():
    assert found(REFERENCES, REFERENCES) == 1
    assert found([*REFERENCES[1:], REFERENCES[0]], REFERENCES) == 0


def test_a_paraphrase_finds_its_own_and_wrong_words_do_not():
    paraphrases = [
        "In the park a little boy is playing football.",
        "At the table, two women drink their tea.",
        "Over the tree, which has fallen, the dog jumps.",
        "A man who repairs old bicycles.",
    ]
    assert found(paraphrases, REFERENCES) == 1
    wrong = [*paraphrases[:3], "Two women at a table."]
    assert found(wrong, REFERENCES) == 0.75


def test_equal_references_are_no_fault_and_foreign_letters_find_nothing():
    assert found(["A dog.", "A dog."], ["A dog.", "A dog."]) == 1
    assert found(["собака", "A dog."], ["A cat.", "A dog."]) == 0.5
    assert found(["собака", "猫"], ["A cat.", "A dog."]) == 0
    assert found(["A zebra dog.", "A dog."], ["猫", "A dog."]) == 0.5  # near another one alone


def test_the_share_found_is_among_so_many_references_however_many_there_are():
    nearer = REFERENCES[0]  # than the first one's own reference, and two places behind it
    references = ["In a park, a boy plays.", REFERENCES[1], nearer, REFERENCES[2]]
    translations = [nearer, REFERENCES[1], nearer, REFERENCES[2]]
    assert found(translations, references, among=4) == 0.75
    assert found(translations, references, among=2) == 1
    assert found(translations, references, among=3) == 1, "two blocks of two"


def test_scores_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    made = ["A boy plays in a park.", *REFERENCES[1:]]
    noise = compare(made, REFERENCES, "en")
    assert noise.pairs == 4
    assert noise.chrf == pytest.approx(sacrebleu.corpus_chrf(made, [REFERENCES]).score)
    assert noise.bleu == pytest.approx(sacrebleu.corpus_bleu(made, [REFERENCES]).score)
    with pytest.raises(ValueError, match="1 translations and 4 references"):
        compare(made[:1], REFERENCES, "en")


def test_noisier_scenes_find_less():
    pytest.importorskip("sacrebleu")
    clean, noisy = (scenes_noise("de", rate, size=100) for rate in (0.0, 1.0))
    assert clean.found == 1
    assert clean.chrf == pytest.approx(100)
    assert noisy.found < 0.95
    assert noisy.chrf < 90


def test_the_rate_is_read_from_the_curve():
    curve = [(0.0, 1.0), (0.5, 0.9), (1.0, 0.8)]
    assert [like_scenes(share, curve) for share in (1.0, 0.95, 0.8, 0.7)] == ["0", "0.25", "1.00", "over 1"]  # fmt: skip


def test_real_translations_lie_beside_their_references(shared):
    """Line by line: shifted by one line, next to none would be found."""
    first = next(comparisons(shared / "data"))
    assert (first.lang, len(first.references)) == ("de", 1000)
    assert found(first.translations[:200], first.references[:200]) > 0.9
    assert found(first.translations[1:201], first.references[:200]) < 0.1


def test_all_captions_of_a_set_are_compared(shared):
    counts = {(one.engine, one.name): len(one.references) for one in comparisons(shared / "data")}
    assert counts["Baidu, 2016", "Flickr8k test"] == counts["Google, 2016", "Flickr8k test"] == 5000
    assert counts["Google, 2021", "xFlickr&CO, from de"] == 2000
    assert set(counts.values()) == {1000, 2000, 5000}


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "captions/xtd10_mt_nllb").mkdir(parents=True)
    with gzip.open(tmp_path / "captions/xtd10_mt_nllb/deu_Latn.txt.gz", "wt") as file:
        file.write("Ein Hund.\n")
    with pytest.raises(DataError, match=r"test_1kcaptions_de\.txt\.gz is missing"):
        next(comparisons(tmp_path))
