"""`xlcm data filter`: what is bad goes, with what was made of it, and all else stays as it was."""

import pytest

from xlcm.cli import main as xlcm
from xlcm.data.manifest import ManifestWriter, read_manifest
from xlcm.types import Caption, Item

CHRF = {"de": (80.0, 30.0, 55.0), "zh": (80.0, 30.0, 55.0)}


@pytest.fixture
def manifest(tmp_path):
    with ManifestWriter(tmp_path / "in.jsonl") as writer:
        for i in range(3):
            captions = [Caption(f"{i}", "en", "A dog."), Caption(f"{i}h", "de", "Hund")]
            for lang, scores in CHRF.items():
                signals = {"back_chrf": scores[i], "language": "de" if i < 2 else "nl"}
                mt = Caption(f"{i}.{lang}", lang, "x", "mt", f"{i}", "m", (), signals)
                captions += [mt, Caption(f"{i}.{lang}.en", "en", "y", "back", mt.id, "m")]
            writer.write(Item(f"{i}", "train", tuple(captions)))
    return tmp_path / "in.jsonl"


def left(manifest, *options):
    out = manifest.with_name("out.jsonl")
    assert xlcm(["data", "filter", str(manifest), "--out", str(out), *options]) == 0
    before = [c for item in read_manifest(manifest) for c in item.captions]
    after = {c.id: c for item in read_manifest(out) for c in item.captions}
    assert all(after[c.id] == c for c in before if c.id in after)
    return sorted({c.id for c in before} - after.keys())


def test_bad_translations_go_with_their_way_back(manifest, capsys):
    assert left(manifest, "--min", "back_chrf=50") == ["1.de", "1.de.en", "1.zh", "1.zh.en"]
    assert "2 of 6 translations left out" in capsys.readouterr().out


def test_a_language_may_have_a_bound_of_its_own(manifest):
    found = left(manifest, "--min", "back_chrf=60", "zh:back_chrf=20")
    assert found == ["1.de", "1.de.en", "2.de", "2.de.en"]
    assert left(manifest, "--max", "de:back_chrf=60") == ["0.de", "0.de.en"]


def test_what_is_identified_as_another_language_goes(manifest):
    found = left(manifest, "--language")
    assert [i for i in found if "en" not in i] == ["0.zh", "1.zh", "2.de", "2.zh"]


def test_languages_that_one_sentence_does_not_tell_apart_are_the_same(manifest):
    path = manifest.with_name("nb.jsonl")
    with ManifestWriter(path) as writer:
        for i, found in enumerate(("no", "nb", "da")):
            caption = Caption(f"{i}", "nb", "x", "mt", None, "m", (), {"language": found})
            writer.write(Item(f"{i}", "train", (caption,)))
    assert left(path, "--language") == ["2"]


def test_all_captions_of_an_engine_can_be_left_out(manifest):
    assert len(left(manifest, "--drop-engine", "m")) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min", "back_crf=50"], "no signal 'back_crf'; did you mean 'back_chrf'"),
        (["--min", "back_chrf"], "expected SIGNAL=NUMBER"),
        (["--min", "back_chrf=nan"], "expected SIGNAL=NUMBER"),
        (["--min", "cn:back_chrf=40"], "did you mean 'zh'"),
        (["--max", "language=3"], "is the word 'de'"),
        ([], "nothing to filter by"),
    ],
)
def test_wrong_bounds_are_named_and_nothing_is_written(manifest, capsys, options, message):
    out = manifest.with_name("out.jsonl")
    assert xlcm(["data", "filter", str(manifest), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_translations_without_a_signal_stay_or_go_as_asked(manifest):
    path = manifest.with_name("some.jsonl")
    with ManifestWriter(path) as writer:
        for i, signals in enumerate(({"similarity": 0.9}, {"similarity": 0.1}, {})):
            caption = Caption(f"{i}", "de", "x", "mt", None, "m", (), signals)
            writer.write(Item(f"{i}", "train", (caption,)))
    assert left(path, "--min", "similarity=0.5", "--missing", "keep") == ["1"]
    assert left(path, "--min", "similarity=0.5", "--missing", "drop") == ["1", "2"]


def test_an_engine_that_no_caption_is_of_stops_the_command(manifest, capsys):
    out = manifest.with_name("out.jsonl")
    line = ["data", "filter", str(manifest), "--out", str(out), "--drop-engine", "m", "M"]
    assert xlcm(line) == 2
    told = capsys.readouterr().err
    assert f"--drop-engine M: no caption of {manifest} is of it" in " ".join(told.split())
    assert "engines there: m" in told
    assert sorted(p.name for p in manifest.parent.iterdir()) == ["in.jsonl"]


def pictured(folder):
    (folder / "old" / "images").mkdir(parents=True)
    (folder / "old" / "link").symlink_to(folder / "elsewhere" / "deep", target_is_directory=True)
    (folder / "elsewhere" / "deep").mkdir(parents=True)
    places = {
        "a": "images/a.jpg", "b": "../old/./images/b.jpg", "c": "link/../c.jpg", "e": "link/e.jpg",
        "f": "f.jpg",
    }  # fmt: skip
    with ManifestWriter(folder / "old" / "in.jsonl") as writer:
        for name, path in places.items():
            (folder / "old" / path).write_text(name)
            caption = Caption(name, "de", "x", "mt", None, "m")
            writer.write(Item(name, "train", (caption,), image=path, video=path))
        absolute = str(folder / "old" / "f.jpg")
        writer.write(Item("abs", "train", (), image=absolute))
    return folder / "old" / "in.jsonl"


@pytest.mark.parametrize("where", ["new/sub", "old/images", "elsewhere/deep", "linked"])
def test_pictures_are_found_from_the_folder_of_the_output(tmp_path, where, capsys):
    path = pictured(tmp_path)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "far" / "away", target_is_directory=True)
    out = tmp_path / where / "out.jsonl"
    assert xlcm(["data", "filter", str(path), "--out", str(out), "--drop-engine", "m"]) == 0
    assert "10 paths of pictures now start from" in capsys.readouterr().out
    for item in read_manifest(out):
        if item.id == "abs":
            assert item.image == str(tmp_path / "old" / "f.jpg")
            continue
        assert (out.parent / item.image).read_text() == item.id
        assert item.video == item.image
    back = out.with_name("back.jsonl")
    assert xlcm(["data", "filter", str(path), "--out", str(back), "--drop-engine", "m",
                 "--keep-paths"]) == 0  # fmt: skip
    assert [i.image for i in read_manifest(back)] == [i.image for i in read_manifest(path)]


def test_paths_stay_as_they_are_in_the_same_folder(tmp_path):
    path = pictured(tmp_path)
    left(path, "--drop-engine", "m")
    found = [i.image for i in read_manifest(path.with_name("out.jsonl"))]
    assert found == [i.image for i in read_manifest(path)]


def test_a_signal_that_no_translation_has_is_refused_also_where_missing_ones_may_be(
    manifest, capsys
):
    out = manifest.with_name("out.jsonl")
    for missing in ("keep", "drop"):
        options = ["--min", "back_crf=50", "--missing", missing]
        assert xlcm(["data", "filter", str(manifest), "--out", str(out), *options]) == 2
        assert "'back_crf'; did you mean 'back_chrf'?" in capsys.readouterr().err
    assert (
        xlcm(["data", "filter", str(manifest), "--out", str(out), "--min", "fr:back_chrf=5"]) == 2
    )
    assert "'fr': no translation" in capsys.readouterr().err
    assert not out.exists()
