"""Translating a manifest: nothing lost, nothing doubled, however often it is stopped and by how many."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from msgspec.structs import replace

from xlcm.cli import main as xlcm
from xlcm.config import ConfigError, build, check
from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, ManifestWriter, read_manifest
from xlcm.models.dual_encoder import DualEncoder
from xlcm.translation import similarity
from xlcm.translation.engines import engines
from xlcm.translation.memory import Memory
from xlcm.translation.scenes_table import ScenesTable
from xlcm.translation.settings import TranslateConfig
from xlcm.translation.translate import translate
from xlcm.types import Caption, Item

REPOSITORY = Path(__file__).resolve().parents[2]
COLOURS = ("red", "blue", "green", "yellow")
SHOUT = (
    "import sys, time\n"
    "lines = sys.stdin.read().splitlines()\n"
    "with open({log!r}, 'a') as log:\n"
    "    log.write(''.join(sys.argv[1] + ' ' + line + '\\n' for line in lines))\n"
    "time.sleep({pause})\n"
    "for line in lines:\n"
    "    print(sys.argv[1] + ': ' + line)\n"
)


@pytest.fixture
def manifest(tmp_path):
    """Forty items of which ten share a caption, one has a blank one and one a line break."""
    path = tmp_path / "in.jsonl"
    with ManifestWriter(path) as writer:
        for i in range(40):
            number = i % 30
            text = f"A {COLOURS[number % 4]} fish and {'two ' * (number // 4)}trees {number}."
            text = {35: " ", 36: "A red\nfish."}.get(i, text)
            captions = [Caption(f"{i}#0", "en", text), Caption(f"{i}#de", "de", "Ein Fisch.")]
            writer.write(Item(f"{i}", "test" if i < 5 else "train", tuple(captions)))
    return path


def config(where, **changes):
    given = {
        "manifest": str(where), "output": str(where.with_name("out.jsonl")),
        "engine": {"name": "scenes_table"}, "targets": ["fr"], "quality": [], "batch_size": 4,
    }  # fmt: skip
    return given | changes


def run(given):
    """Translate in this process, as one of several if it is in the pool."""
    tiny.forget_processes()
    from accelerate import Accelerator

    return dict(translate(check(TranslateConfig, given), Accelerator()))


def run_in_pool(given):
    processes = tiny.join_pool()
    run(given)
    return processes


def cut_in_pool(given):
    """Translate with an engine that cuts every text; return how many it says were cut."""
    tiny.join_pool()
    whole = ScenesTable.translate

    def cutting(self, texts, source, target):
        self.cut += len(texts)
        return whole(self, texts, source, target)

    ScenesTable.translate = cutting
    try:
        return run(given)["cut"]
    finally:
        ScenesTable.translate = whole


def shouting(folder, pause=0.0):
    """Return the config of an engine that writes down what it is asked."""
    script = folder / "shout.py"
    script.write_text(SHOUT.format(log=str(folder / "asked.txt"), pause=pause))
    line = f"{sys.executable} {script} {{source}}-{{target}}"
    return {"name": "command", "command": line, "label": "shout"}


def asked(folder):
    path = folder / "asked.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_translations_and_their_way_back_join_the_captions(manifest):
    counts = run(config(manifest, targets=["fr", "de"]))
    assert counts["blank"] == 2  # one caption, two languages
    assert counts["mt fr"] == counts["mt de"] == 39
    assert counts["back en"] == 78
    engine, items = ScenesTable(), list(read_manifest(manifest.with_name("out.jsonl")))
    for before, item in zip(read_manifest(manifest), items, strict=True):
        assert item.captions[:2] == before.captions
        if item.id == "35":
            assert len(item.captions) == 2
            continue
        french, back = item.captions[2:4]
        source = " ".join(item.captions[0].text.split())
        assert french.text == engine.translate([source], "en", "fr")[0]
        assert back.text == engine.translate([french.text], "fr", "en")[0]
        assert (french.origin, french.of, french.engine) == ("mt", before.captions[0].id, "scenes-table")  # fmt: skip
        assert (back.origin, back.of, back.lang) == ("back", french.id, "en")
    report = check_manifest(manifest.with_name("out.jsonl"), images=False)
    assert report.counts["duplicate_caption"] == report.counts["of_nowhere"] == 0


def test_translations_are_right_for_the_items_that_their_source_is_right_for(tmp_path):
    first = Item("0", "test", (Caption("0#0", "en", "A red fish.", relevant=("2", "1")),))
    with ManifestWriter(tmp_path / "in.jsonl") as writer:
        for item in (first, Item("1", "test", ()), Item("2", "test", ())):
            writer.write(item)
    run(config(tmp_path / "in.jsonl", back=True))
    captions = next(read_manifest(tmp_path / "out.jsonl")).captions
    assert [(c.origin, c.relevant) for c in captions] == [
        (origin, ("2", "1")) for origin in ("human", "mt", "back")
    ]


def test_equal_texts_are_translated_once(manifest, tmp_path):
    run(config(manifest, engine=shouting(tmp_path), back=False))
    lines = asked(tmp_path)
    assert len(lines) == len(set(lines)) == 31
    fish = [c.text for i in read_manifest(tmp_path / "out.jsonl") for c in i.captions[2:]]
    assert len(fish) == 39


def test_only_the_splits_and_origins_that_were_asked_for(manifest):
    assert run(config(manifest, splits=["test"], back=False))["mt fr"] == 5
    with pytest.raises(DataError, match=r"no caption in 'en' of origin mt.*nothing to translate"):
        run(config(manifest, origins=["mt"]))


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_manifest_of_one(manifest, tmp_path, processes, world):
    run(config(manifest))
    alone = (tmp_path / "out.jsonl").read_bytes()
    other = config(manifest, output=str(tmp_path / "shared.jsonl"), engine=shouting(tmp_path))
    assert processes.run(world, run_in_pool, other) == [world] * world
    lines = asked(tmp_path)
    assert len(lines) == len(set(lines)) == 62
    table = config(manifest, output=str(tmp_path / "again.jsonl"))
    processes.run(world, run_in_pool, table)
    assert (tmp_path / "again.jsonl").read_bytes() == alone


def test_texts_that_were_cut_are_counted_over_all_processes(manifest, processes):
    assert processes.run(2, cut_in_pool, config(manifest, back=False)) == [31, 31]


def test_what_comes_back_blank_scores_nothing(manifest, tmp_path):
    pytest.importorskip("sacrebleu")
    (tmp_path / "half.py").write_text(
        "import sys\nfor line in sys.stdin: print(line.strip() if sys.argv[1] == 'en' else '')\n"
    )
    line = f"{sys.executable} {tmp_path / 'half.py'} {{source}}"
    engine = {"name": "command", "command": line, "label": "half"}
    assert run(config(manifest, engine=engine, quality=["back"])) == {
        "mt fr": 39, "no way back": 39, "blank": 1, "cut": 0
    }  # fmt: skip
    made = [c for i in read_manifest(tmp_path / "out.jsonl") for c in i.captions if c.of]
    assert {c.quality["back_chrf"] for c in made} == {0.0}


def test_a_blank_translation_is_counted_and_tried_again_by_the_next_run(manifest, tmp_path):
    (tmp_path / "moody.py").write_text(
        "import pathlib, sys\n"
        "for line in sys.stdin:\n"
        f"    open({str(tmp_path / 'asked.txt')!r}, 'a').write(line)\n"
        f"    well = pathlib.Path({str(tmp_path / 'well')!r}).exists()\n"
        "    print(line.strip() + '!' if well or 'red' not in line else ' ')\n"
    )
    engine = {"name": "command", "command": f"{sys.executable} {tmp_path / 'moody.py'}",
              "label": "moody"}  # fmt: skip
    given = config(manifest, engine=engine)
    red = sum("red" in c.text for i in read_manifest(manifest) for c in i.captions)
    first = run(given)
    assert (first["no translation"], first["mt fr"]) == (red, 39 - red)
    before = len(asked(tmp_path))
    assert run(given)["no translation"] == red, "still"
    again = asked(tmp_path)[before:]
    assert again
    assert all("red" in line for line in again), "the others are remembered"
    (tmp_path / "well").touch()
    assert run(given) == {"mt fr": 39, "back en": 39, "blank": 1, "cut": 0}
    before = len(asked(tmp_path))
    run(given)
    assert len(asked(tmp_path)) == before
    file = next(Path(f"{given['output']}.memory").glob("00000*.jsonl"))
    old = json.dumps(["en", "fr", "A blank of an older version.", ""]).encode()
    file.write_bytes(old + b"\n" + file.read_bytes())
    memory = Memory(
        file.parent, {"name": "command", **{k: engine[k] for k in ("command", "label")}}
    )
    assert ("en", "fr", "A blank of an older version.") not in memory


def test_a_run_that_was_killed_goes_on_without_a_lost_or_doubled_line(
    manifest, tmp_path, processes
):
    """Killed with SIGKILL at several moments; a batch that was under way is all that is redone."""
    slow = config(manifest, engine=shouting(tmp_path, pause=0.1))
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(slow))
    command = [sys.executable, str(REPOSITORY / "recipes" / "translate.py"), str(path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}
    kills = 0
    for more in (3, 9, 5):
        goal = len(asked(tmp_path)) + more
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while child.poll() is None and len(asked(tmp_path)) < goal:
            time.sleep(0.005)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
        assert not (tmp_path / "out.jsonl").exists()
    assert kills == 3
    assert processes.run(2, run_in_pool, slow) == [2, 2]  # on more of them than before
    lines = asked(tmp_path)
    assert len(set(lines)) == 62
    assert len(lines) <= 62 + 4 * kills  # one batch of four each
    ids = [c.id for item in read_manifest(tmp_path / "out.jsonl") for c in item.captions]
    assert len(ids) == len(set(ids)) == 80 + 2 * 39
    made = {c.text for i in read_manifest(tmp_path / "out.jsonl") for c in i.captions if c.of}
    assert all(text.startswith(("en-fr: ", "fr-en: ")) for text in made)


def test_a_finished_run_is_not_made_again_and_its_output_can_be_its_input(manifest, tmp_path):
    run(config(manifest, engine=shouting(tmp_path)))
    first, lines = (tmp_path / "out.jsonl").read_bytes(), asked(tmp_path)
    counts = run(config(manifest, manifest=str(tmp_path / "out.jsonl"), engine=shouting(tmp_path)))
    assert counts["there before"] == 78
    run(config(manifest, engine={**shouting(tmp_path), "timeout_s": 900.0}))  # the same engine
    assert asked(tmp_path) == lines
    assert (tmp_path / "out.jsonl").read_bytes() == first


def changed(path, edits, out):
    """Write a manifest again with other texts of some captions."""
    with ManifestWriter(out) as writer:
        for item in read_manifest(path):
            captions = (replace(c, text=edits.get(c.id, c.text)) for c in item.captions)
            writer.write(replace(item, captions=tuple(captions)))
    return str(out)


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("forget", [True, False])
def test_a_caption_that_was_changed_is_translated_again(manifest, tmp_path, back, forget):
    run(config(manifest, engine=shouting(tmp_path)))
    out, before = tmp_path / "out.jsonl", len(asked(tmp_path))
    edits = {"3#0": "A new sentence.", "4#0": " "}
    old = {c.id: c for item in read_manifest(out) for c in item.captions}
    given = changed(out, edits, tmp_path / "edited.jsonl")
    memory = {"memory": str(tmp_path / "fresh")} if forget else {}
    counts = run(config(manifest, manifest=given, engine=shouting(tmp_path), back=back, **memory))
    if not forget:
        assert len(asked(tmp_path)) == before + 1 + back
    new = {c.id: c for item in read_manifest(out) for c in item.captions}
    assert new["3#0.fr"].text == "en-fr: A new sentence."
    assert "4#0.fr" not in new
    assert "4#0.fr.en" not in new
    if back:
        assert new["3#0.fr.en"].text == "fr-en: en-fr: A new sentence."
        assert (counts["updated"], counts["outdated"], counts["there before"]) == (2, 2, 74)
    else:  # what was made of the old translation would be a lie
        assert "3#0.fr.en" not in new
        assert (counts["updated"], counts["outdated"], counts["there before"]) == (1, 3, 37)
    edited = {"3#0", "3#0.fr", "3#0.fr.en", "4#0", "4#0.fr", "4#0.fr.en"}
    assert {i: c for i, c in new.items() if i not in edited} == {
        i: c for i, c in old.items() if i not in edited
    }
    assert check_manifest(out, images=False).counts["of_nowhere"] == 0


def test_signals_of_a_changed_caption_are_measured_anew_and_further_ones_added(manifest, tmp_path):
    run(config(manifest, engine=shouting(tmp_path), quality=["length"]))
    out = tmp_path / "out.jsonl"
    given = changed(out, {"3#0": "A sentence."}, tmp_path / "edited.jsonl")
    signals = ["length", "copied"]
    run(config(manifest, manifest=given, engine=shouting(tmp_path), quality=signals))
    new = {c.id: c.quality for i in read_manifest(out) for c in i.captions if c.of}
    assert all(list(found) == ["length_ratio", "copied"] for found in new.values())
    assert new["3#0.fr"]["length_ratio"] == pytest.approx(18 / 11, abs=0.01)


def test_what_people_wrote_after_a_translation_that_is_gone_stays_without_its_source(
    manifest, tmp_path
):
    run(config(manifest, engine=shouting(tmp_path)))
    out, given = tmp_path / "out.jsonl", tmp_path / "edited.jsonl"
    with ManifestWriter(given) as writer:
        for item in read_manifest(out):
            if item.id == "3":
                blank = replace(item.captions[0], text="")
                edited = Caption("mine", "fr", "Un poisson.", "human", "3#0.fr")
                chain = Caption("chain", "de", "x", "mt", "3#0.fr.en", "other")
                item = replace(item, captions=(blank, *item.captions[1:], edited, chain))
            writer.write(item)
    run(config(manifest, manifest=str(given), engine=shouting(tmp_path)))
    found = {c.id: c for c in next(i for i in read_manifest(out) if i.id == "3").captions}
    assert list(found) == ["3#0", "3#de", "mine"]
    assert found["mine"].of is None


def test_what_is_translated_from_a_caption_that_goes_is_not_written(manifest, tmp_path):
    run(config(manifest, engine=shouting(tmp_path)))
    out, origins = tmp_path / "out.jsonl", ["human", "back"]
    given = changed(out, {"3#0": " "}, tmp_path / "edited.jsonl")
    run(config(manifest, manifest=given, engine=shouting(tmp_path), origins=origins))
    found = {i.id: [c.id for c in i.captions] for i in read_manifest(out)}
    assert found["3"] == ["3#0", "3#de"]
    assert found["2"][4:] == ["2#0.fr.en.fr", "2#0.fr.en.fr.en"]
    assert check_manifest(out, images=False).counts["of_nowhere"] == 0


def test_pictures_are_found_from_the_folder_of_the_translated_manifest(tmp_path, capsys):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.jpg").write_text("a")
    path = tmp_path / "data" / "in.jsonl"
    with ManifestWriter(path) as writer:
        caption = Caption("1", "en", "A red fish.")
        writer.write(Item("1", "train", (caption,), image="images/a.jpg"))
    out = tmp_path / "translated" / "out.jsonl"
    assert run(config(path, output=str(out)))["paths moved"] == 1
    (item,) = read_manifest(out)
    assert item.image == "../data/images/a.jpg"
    assert (out.parent / item.image).read_text() == "a"
    run(config(path, output=str(out), keep_paths=True))
    assert next(read_manifest(out)).image == "images/a.jpg"


def test_another_engine_does_not_go_on_with_a_memory(manifest, tmp_path):
    run(config(manifest))
    with pytest.raises(DataError, match=r"another engine.*delete this folder"):
        run(config(manifest, engine=shouting(tmp_path)))
    again = config(manifest, manifest=str(tmp_path / "out.jsonl"), engine=shouting(tmp_path),
                   memory=str(tmp_path / "other"))  # fmt: skip
    with pytest.raises(DataError, match=r"out\.jsonl:1: caption id '0#0\.fr' is taken"):
        run(again)


def test_a_command_that_made_nothing_may_be_corrected(manifest, tmp_path):
    wrong = {"name": "command", "command": "false", "label": "shout", "tries": 1}
    with pytest.raises(DataError):
        run(config(manifest, engine=wrong))
    (tmp_path / "out.jsonl.memory" / "00000-000.jsonl").write_bytes(b'["en", "fr", "a torn')
    assert run(config(manifest, engine=shouting(tmp_path)))["mt fr"]
    with pytest.raises(DataError, match="another engine"):
        run(config(manifest, engine=wrong))


def test_of_two_engines_that_begin_in_one_empty_memory_the_second_is_refused(tmp_path):
    first, second = (Memory(tmp_path / "m", {"name": name}) for name in ("x", "y"))
    second.add("en", "de", ["a"], ["A"])
    with pytest.raises(DataError, match="another engine"):
        first.add("en", "de", ["a"], ["B"])


def test_a_torn_last_line_is_left_out_and_a_damaged_one_named(tmp_path):
    memory = Memory(tmp_path / "m", {"name": "x"})
    memory.add("en", "de", ["a\ud800", "b"], ["A", "B"])
    memory.close()
    (file,) = (tmp_path / "m").glob("*.jsonl")
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        again = Memory(tmp_path / "m", {"name": "x"})
        assert len(again) == whole[:cut].count(b"\n")
    for damaged in (whole.replace(b'["en"', b"[en", 1), b"null\n" + whole, b"[1, 2]\n" + whole):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{file.name}:1: damaged.*delete this line"):
            Memory(tmp_path / "m", {"name": "x"})
    file.write_bytes(whole)
    memory = Memory(tmp_path / "m", {"name": "x"})
    file.write_bytes(whole + b"[1, 2]\n")
    with pytest.raises(DataError, match=rf"{file.name}:3: damaged"):
        memory.refresh()


def test_a_command_that_can_not_be_started_is_named(tmp_path):
    (tmp_path / "plain.txt").write_text("no program")
    for name, message in (("plain.txt", "can't be started"), ("gone", "there is no command")):
        engine = {"name": "command", "command": str(tmp_path / name), "label": "x", "tries": 1}
        with pytest.raises(ConfigError, match=message):
            build(engines, engine).translate(["A dog."], "en", "de")


def test_a_command_that_writes_nothing_has_not_translated_one_text():
    engine = {"name": "command", "command": "true", "label": "x", "tries": 1}
    with pytest.raises(DataError, match="wrote 0 lines for 1"):
        build(engines, engine).translate(["A dog."], "en", "de")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('only one')", "wrote 1 lines for 4"),
        ("import sys; sys.exit('no key')", "exit code 1: no key"),
        ("import time; time.sleep(9)", "not done after"),
        (r"import sys; sys.stdout.buffer.write(b'\xff\n' * 4)", "no UTF-8"),
    ],
)
def test_a_command_that_fails_stops_the_run_and_says_why(manifest, tmp_path, body, message):
    (tmp_path / "bad.py").write_text(body)
    line = f"{sys.executable} {tmp_path / 'bad.py'}"
    engine = {"name": "command", "command": line, "label": "x", "tries": 1, "timeout_s": 1.0}
    with pytest.raises(DataError, match=message):
        run(config(manifest, engine=engine))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("name", ["7#0.fr", "7#0.fr.en"])
def test_a_caption_of_another_engine_under_the_name_stops_before_any_work(
    manifest, tmp_path, monkeypatch, name
):
    with ManifestWriter(tmp_path / "taken.jsonl") as writer:
        for item in read_manifest(manifest):
            if item.id == "7":
                more = Caption(name, "fr", "Un poisson.", "mt", "7#0", "another")
                item = replace(item, captions=(*item.captions, more))
            writer.write(item)
    monkeypatch.setattr(ScenesTable, "translate", lambda *_: pytest.fail("work was done"))
    with pytest.raises(DataError, match=rf"taken.jsonl:8: .*'{name}' is taken.*'another'"):
        run(config(tmp_path / "taken.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_wrong_language_stops_before_anything_is_written(manifest, tmp_path):
    with pytest.raises(ConfigError, match=r"no grammar for 'pt'"):
        run(config(manifest, targets=["pt"]))
    with pytest.raises(ConfigError, match="did you mean 'cs'"):
        run(config(manifest, targets=["cz"]))
    assert not (tmp_path / "out.jsonl.memory").exists()


def test_the_command_line_translates(manifest, tmp_path, capsys):
    tiny.forget_processes()
    out = str(tmp_path / "cli.jsonl")
    assert xlcm(["translate", str(manifest), "--out", out, "--to", "sw", "--scenes-table"]) == 0
    assert "39 mt sw" in capsys.readouterr().out
    quality = [c.quality for i in read_manifest(out) for c in i.captions if c.of]
    assert all(signals.keys() >= {"back_chrf", "length_ratio"} for signals in quality)
    assert xlcm(["translate", str(manifest), "--out", out, "--to", "sw", "--command", "x"]) == 2
    assert "--label" in capsys.readouterr().err


def test_the_config_of_scenes_runs_as_it_ships(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sacrebleu")
    monkeypatch.chdir(REPOSITORY)
    tiny.forget_processes()
    out = tmp_path / "out.jsonl"
    assert tiny.recipe("translate.py").main("configs/translate/scenes.yaml", f"output={out}") == 0
    assert "16 mt de, 48 back en, 16 mt sw, 16 mt zh" in capsys.readouterr().out
    report = check_manifest(out, images=False)
    assert (report.items, report.captions) == (16, 16 * 7)
    assert report.faults == 0


def test_the_similarity_is_that_of_the_model(manifest, tmp_path, tiny_data):
    model = DualEncoder.from_config(tiny.tree(tiny_data, tmp_path)["model"])
    model.save_pretrained(tmp_path / "model")
    run(config(manifest, similarity=str(tmp_path / "model"), quality=["length"]))
    item = next(read_manifest(tmp_path / "out.jsonl"))
    for caption, of in ((item.captions[2], item.captions[0]), (item.captions[3], item.captions[2])):
        one, other = model.encode_text([caption.text, of.text], [caption.lang, of.lang])
        signals = caption.quality
        assert signals["similarity"] == pytest.approx(float(one @ other), abs=1e-3)
        assert "length_ratio" in signals
    with pytest.raises(FileNotFoundError):
        run(config(manifest, similarity=str(tmp_path / "gone")))
    assert next(read_manifest(tmp_path / "out.jsonl")) == item


def test_captions_of_many_items_are_encoded_together_each_once(
    manifest, tmp_path, tiny_data, monkeypatch
):
    model = DualEncoder.from_config(tiny.tree(tiny_data, tmp_path)["model"])
    model.save_pretrained(tmp_path / "model")
    encoded = []
    encode = DualEncoder.encode_text

    def listening(self, texts, langs, **options):
        encoded.append(list(zip(texts, langs)))
        return encode(self, texts, langs, **options)

    monkeypatch.setattr(DualEncoder, "encode_text", listening)
    found = {}
    for at_once, times in ((4096, 1), (20, 4)):
        monkeypatch.setattr(similarity, "AT_ONCE", at_once)
        encoded.clear()
        run(config(manifest, similarity=str(tmp_path / "model")))
        assert len(encoded) == times
        assert all(len(set(rows)) == len(rows) for rows in encoded)
        items = list(read_manifest(tmp_path / "out.jsonl"))
        assert [item.id for item in items] == [str(n) for n in range(40)]
        found[at_once] = [
            c.quality["similarity"] for item in items for c in item.captions if c.engine
        ]
    assert found[20] == pytest.approx(found[4096], abs=1e-3)


def test_a_manifest_that_is_not_there_leaves_no_memory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        run(config(tmp_path / "gone.jsonl"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        ConfigError, match=r"^config: `targets`: 'german' is no BCP 47 language code"
    ):
        check(TranslateConfig, config(tmp_path / "x.jsonl", targets=["german"]))
