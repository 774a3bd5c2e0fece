import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlcm.data.cleaning import CLEANINGS, letters_only, words_only


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A Man, on a stage; is playing!", "A man on a stage is playing."),
        ("naïve café", "Na ve caf."),
        ("  2 dogs -- RUN  ", "2 dogs run."),
        ("don't", "Don t."),
        ("already clean.", "Already clean."),
    ],
)
def test_letters_are_cleaned_as_the_released_code_of_nrccr_does(caption, cleaned):
    assert letters_only(caption) == cleaned


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A man's dog, on a stage; is 'playing'!", "A man's dog on a stage is 'playing'"),
        ("stop-motion  of\ta_thing", "stop motion of a_thing"),
        ("Ein Café, größer.", "Ein Café größer"),
        ("don’t", "don’t"),
        ("नमस्ते, दुनिया!", "नमस्ते दुनिया"),
        ("می‌روم.", "می‌روم"),
    ],
)
def test_words_keep_apostrophes_and_letters_of_any_script(caption, cleaned):
    assert words_only(caption) == cleaned


@given(st.text())
def test_what_is_clean_stays_and_nothing_gives_nothing(text):
    for clean in CLEANINGS.values():
        once = clean(text)
        assert clean(once) == once
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .")
    assert set(letters_only(text)) <= allowed


@pytest.mark.parametrize("clean", [letters_only, words_only])
def test_a_text_of_other_characters_leaves_nothing(clean):
    assert clean("?! -- …") == ""
