"""Whole runs of methods with teachers and opponents, and that it doesn't matter how they are cut up."""

import json

import pytest
import tiny
from tiny_methods import RUN, cl2cm, languages, nrccr

from xlcm.methods.c2kd import C2KD


@pytest.fixture(scope="module")
def teacher(tiny_data, tmp_path_factory):
    """A model that was trained to read the source's captions."""
    output = tmp_path_factory.mktemp("teacher")
    run = tiny.train(languages(tiny_data, output, {"name": "translate_train"}))
    return str(run.trained.retriever.save_pretrained(output / "model", languages=["en"]))


@pytest.fixture(scope="module")
def incomplete(tiny_data, tmp_path_factory):
    """A manifest in which every third item lacks French."""
    path = tmp_path_factory.mktemp("incomplete") / "translated.jsonl"
    with path.open("w") as out:
        for number, line in enumerate((tiny_data / "translated.jsonl").read_text().splitlines()):
            item = json.loads(line)
            if number % 3 == 0:
                item["captions"] = [c for c in item["captions"] if "2fr" not in c["id"]]
            out.write(json.dumps(item) + "\n")
    return path


def figures(output):
    """Terms and gradient norm of each step."""
    drop = ("step", "lr", "time", "padding")  # which is that of the captions one process reads
    return [{k: v for k, v in r.items() if k not in drop} for r in tiny.metrics(output)]


def assert_alike(one, other, rel):
    assert len(one) == len(other) == RUN["steps"]
    for left, right in zip(one, other):
        assert left == pytest.approx(right, rel=rel, abs=1e-6)


@pytest.mark.parametrize("clean", ["none", "words"])
def test_c2kd_learns_the_same_from_looked_up_and_from_computed_teachers(
    tiny_data, tmp_path, teacher, clean, monkeypatch
):
    spec = {"name": "c2kd", "teachers": [teacher]}
    found = {}
    for how in ("looked up", "computed"):
        if how == "computed":
            monkeypatch.setattr(C2KD, "remember", lambda *arguments, **options: None)
        output = tmp_path / how
        run = tiny.train(languages(tiny_data, output, spec, clean=clean))
        assert bool(run.method.extra_texts) == (how == "computed")
        found[how] = figures(output)
    assert_alike(found["looked up"], found["computed"], rel=1e-4)


def test_c2kd_trains_on_items_that_lack_a_language(tiny_data, tmp_path, teacher, incomplete):
    spec = {"name": "c2kd", "teachers": [teacher]}
    tiny.train(languages(tiny_data, tmp_path / "some", spec, manifest=incomplete))
    tiny.train(languages(tiny_data, tmp_path / "all", spec))
    first = [figures(tmp_path / name)[0] for name in ("some", "all")]
    assert first[0].keys() == first[1].keys() >= {"distillation.fr", "contrastive.fr"}
    assert first[0]["contrastive.fr"] != pytest.approx(first[1]["contrastive.fr"], rel=1e-3)


def test_c2kd_refuses_a_teacher_that_does_not_know_the_source(tiny_data, tmp_path, teacher):
    config = languages(tiny_data, tmp_path, {"name": "c2kd", "teachers": [teacher]})
    config["data"]["views"]["source"] = {"langs": ["de"]}
    config["data"]["views"]["targets"] |= {"langs": ["en"], "origin": ["back"]}
    with pytest.raises(ValueError, match=r"was trained on en and is to be asked in de"):
        tiny.train(config)


@pytest.mark.parametrize("name", ["nrccr", "c2kd", "c2kd of some", "cl2cm", "cl2cm by words"])
def test_two_processes_train_as_one(tiny_data, tmp_path, processes, teacher, incomplete, name):
    def config(output):
        if name == "nrccr":
            return nrccr(tiny_data, output)
        if name.startswith("cl2cm"):
            words = {"marginals": "idf", "word_score": 0.5, "iterations": 5}
            return cl2cm(tiny_data, output, **(words if name.endswith("words") else {}))
        manifest = incomplete if name.endswith("some") else None
        spec = {"name": "c2kd", "teachers": [teacher]}
        return languages(tiny_data, output, spec, manifest=manifest)

    tiny.train(config(tmp_path / "one"))
    processes.run(2, tiny.train_in_pool, [config(tmp_path / "two")])
    assert_alike(figures(tmp_path / "two"), figures(tmp_path / "one"), rel=1e-3)
