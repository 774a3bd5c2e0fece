"""A teacher: what is looked up is what it would say, and what doesn't fit is refused."""

import logging
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch

from xlcm.config import check, merge
from xlcm.data import visuals
from xlcm.data.batching import Row
from xlcm.data.collate import Collator
from xlcm.data.manifest import DataError
from xlcm.data.rows import open_splits, survey
from xlcm.data.subset import Subset
from xlcm.distributed import world
from xlcm.encoders.transform import ImageTransform
from xlcm.models import teacher as teachers
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.teacher import Teacher
from xlcm.training.settings import TrainConfig


def save(data, folder, **sections):
    """Save an untrained model, with batch norm so that evaluation mode shows."""
    torch.manual_seed(3)
    base = {"text_head": {"name": "batch_norm"}, "text": {"tokenizer": {"max_tokens": 64}}}
    changes = merge({"model": base}, sections)
    config = check(TrainConfig, tiny.tree(data, folder, **changes))
    model = DualEncoder.from_config(config.model)
    return model.save_pretrained(folder, languages=["en", "de"])


@pytest.fixture(scope="module")
def saved(tiny_data, tmp_path_factory):
    return save(tiny_data, tmp_path_factory.mktemp("teacher") / "model")


def rows_of(data, visual="features"):
    config = check(TrainConfig, tiny.tree(data, data))
    (dataset,), _ = open_splits([config.data.train], visual=visual)
    return survey(dataset, config.data.views)


def batch_of(rows, teacher, numbers, *, fixed=True):
    """The batch of some rows, with the source's captions in the teacher's tokens as well."""
    tokenizer = teacher.model.text.tokenizer
    collate = Collator(
        rows.dataset, rows.views, tokenizer, teacher.model.image.transform,
        extra={teacher.text_name: ("source", tokenizer)},
    )  # fmt: skip
    batch = collate([Row(n, slot=0, epoch=0) for n in numbers])
    assert batch.text["source"].keys == tuple(f"{name}en" for name in batch.names)
    assert batch.fixed
    return replace(batch, fixed=fixed)


def embed(folder, data, numbers, remember, images=True, visual="features"):
    rows, teacher = rows_of(data, visual), Teacher(str(folder))
    if remember:
        teacher.remember(rows.dataset, rows.views, "source", images=images, batch_size=10)
    return teacher(batch_of(rows, teacher, numbers), "source")


@pytest.mark.parametrize("images", [True, False])
def test_looked_up_outputs_are_the_computed_ones(saved, tiny_data, images):
    numbers = [5, 63, 0, 17, 17, 30]
    computed = embed(saved, tiny_data, numbers, remember=False)
    found = embed(saved, tiny_data, numbers, remember=True, images=images)
    for one, other in zip(found, computed):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert one.shape == (6, 16)
        assert not one.requires_grad
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-3)


def test_looked_up_pictures_are_the_computed_ones(tiny_data, tmp_path):
    folder = save(tiny_data, tmp_path, **tiny.pictures(tiny_data))
    computed, found = (
        embed(folder, tiny_data, [9, 2, 4], remember=how, visual="image") for how in (False, True)
    )
    for one, other in zip(found, computed):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_what_is_looked_up_is_not_computed(saved, tiny_data):
    rows, teacher = rows_of(tiny_data), Teacher(str(saved))
    teacher.remember(rows.dataset, rows.views, "source", images=True)
    batch = batch_of(rows, teacher, [1, 2])
    teacher.model.text = teacher.model.image = None  # running one would fail
    teacher(batch, "source")
    with pytest.raises(TypeError):  # an item that is drawn anew each time has to be looked at
        teacher(batch_of(rows, Teacher(str(saved)), [1, 2], fixed=False), "source")


def all_rows(folder, data):
    """In a process of the pool: each one embeds a share and has all."""
    found = embed(folder, data, range(64), remember=True)
    return {"world": world(), "found": [one.tolist() for one in found]}


@pytest.mark.parametrize("number", [2, 3])
def test_processes_share_the_work_and_have_all_of_it(processes, saved, tiny_data, number):
    wanted = embed(saved, tiny_data, range(64), remember=False)
    for result in processes.run(number, all_rows, saved, tiny_data):
        assert result["world"] == number
        for one, other in zip(result["found"], wanted):
            torch.testing.assert_close(torch.tensor(one), other, rtol=0, atol=1e-6)


# -- what is kept --------------------------------------------------------------------------------


class Silent(Teacher):
    """A teacher that can't be asked anything: what it says it must have read."""

    def _texts(self, *_):
        pytest.fail("it was asked again")

    _images = _texts


def test_a_resumed_run_reads_what_the_teacher_said_before(saved, tiny_data, tmp_path):
    rows = rows_of(tiny_data)
    tmp_path.chmod(0o750)
    said = []
    for kind in (Teacher, Silent):
        teacher = kind(str(saved), 1)
        teacher.remember(rows.dataset, rows.views, "source", images=True, folder=tmp_path)
        said.append(teacher(batch_of(rows, teacher, [5, 63, 0]), "source"))
    for one, other in zip(*said):
        assert torch.equal(one, other)
    (file,) = tmp_path.iterdir()
    assert file.name == "teacher1.safetensors"
    assert file.stat().st_mode & 0o666 == tmp_path.stat().st_mode & 0o666  # the group may go on


def test_what_another_teacher_or_of_other_data_was_said_is_not_taken(
    saved, tiny_data, tmp_path, monkeypatch
):
    rows, view = rows_of(tiny_data), "source"
    Teacher(str(saved)).remember(rows.dataset, rows.views, view, images=True, folder=tmp_path)
    file = tmp_path / "teacher0.safetensors"
    good = file.read_bytes()

    def asks(teacher, *, images=True, of=rows):
        """Whether it is asked anew; the file is then that of the new answers."""
        asked = []
        monkeypatch.setattr(teacher, "_texts", lambda *_: asked.append(1) or torch.zeros(1, 16))
        monkeypatch.setattr(teacher, "_images", lambda *_: torch.zeros(1, 16))
        teacher.remember(of.dataset, of.views, view, images=images, folder=tmp_path)
        assert (file.read_bytes() != good) == bool(asked)
        file.write_bytes(good)
        return bool(asked)

    assert not asks(Teacher(str(saved)))
    other = Teacher(str(saved))
    next(other.model.parameters()).data.view(-1)[0] += 1
    assert asks(other)
    shorter = Teacher(str(saved))
    shorter.model.text.tokenizer.max_tokens = 5
    assert asks(shorter), "the same weights, but captions are cut"
    assert asks(Teacher(str(saved)), images=False)
    fewer = replace(rows, dataset=Subset(rows.dataset, list(range(63))))
    assert asks(Teacher(str(saved)), of=fewer)
    file.write_bytes(good[:-10])
    assert asks(Teacher(str(saved))), "half a file"


def test_pictures_are_read_by_workers_and_a_bad_one_is_named(tiny_data, tmp_path, monkeypatch):
    folder = save(tiny_data, tmp_path, **tiny.pictures(tiny_data))
    rows = rows_of(tiny_data, "image")
    found, load = [], visuals.picture

    def noted(*given):
        tmp_path.joinpath(f"read by {os.getpid()}").touch()
        return load(*given)

    monkeypatch.setattr(visuals, "picture", noted)
    for workers in (0, 2):
        teacher = Teacher(str(folder))
        teacher.remember(
            rows.dataset, rows.views, "source", images=True, batch_size=10, workers=workers
        )
        found.append(teacher._image)
    assert torch.equal(*found)
    assert len(found[0]) == 64
    assert len(list(tmp_path.glob("read by *"))) == 3  # this process and two others

    def missing(index):
        raise DataError(f"tiny.jsonl:{index}: image is empty")

    rows.dataset.load_pixels = rows.dataset.load_image = missing
    with pytest.raises(DataError, match=r"tiny\.jsonl:0: image is empty"):
        teacher.remember(rows.dataset, rows.views, "source", images=True, workers=1)


def test_a_teacher_is_frozen_and_in_evaluation_mode(saved):
    teacher = Teacher(str(saved))
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())


def test_a_teacher_without_its_captions_says_which_are_missing(saved, tiny_data):
    rows, teacher = rows_of(tiny_data), Teacher(str(saved), 4)
    batch = batch_of(rows, teacher, [1, 2])
    del batch.text["teacher4"]
    with pytest.raises(ValueError, match=r"was not shown the training data.*'teacher4'"):
        teacher(batch, "source")


def test_a_caption_that_the_teacher_has_never_seen_is_named(saved, tiny_data):
    rows, teacher = rows_of(tiny_data), Teacher(str(saved))
    teacher.remember(rows.dataset, rows.views, "source", images=True)
    batch = batch_of(rows, teacher, [1, 2, 3])
    keys = batch.text["source"].keys
    batch.text["source"].keys = (keys[0], "elsewhere7", keys[2])
    with pytest.raises(
        ValueError, match=r"never seen 1 of the batch's 3 'source' captions.*'elsewhere7'.*remember"
    ):
        teacher(batch, "source")


# -- what doesn't fit ----------------------------------------------------------------------------


def student(**image):
    return SimpleNamespace(image=SimpleNamespace(**image))


def test_a_teacher_of_pictures_and_a_student_of_features_are_refused(saved, tiny_data, tmp_path):
    features = Teacher(str(saved))
    with pytest.raises(ValueError, match=r"reads features, the student pixels"):
        features.refuse_misfit(student(reads_features=False, transform=ImageTransform(32)))
    pixels = Teacher(str(save(tiny_data, tmp_path, **tiny.pictures(tiny_data))))
    with pytest.raises(ValueError, match=r"reads pixels, the student features.*same data"):
        pixels.refuse_misfit(student(reads_features=True, feature_width=8))
    transform = pixels.model.image.transform
    pixels.refuse_misfit(student(reads_features=False, transform=transform))
    other = ImageTransform(**{**transform.spec(), "size": 64})
    with pytest.raises(ValueError, match=r"prepared otherwise.*size=32.*size=64.*image_size"):
        pixels.refuse_misfit(student(reads_features=False, transform=other))


def test_a_teacher_of_other_features_is_refused(saved):
    teacher = Teacher(str(saved))
    teacher.refuse_misfit(student(reads_features=True, feature_width=tiny.FEATURES))
    with pytest.raises(ValueError, match=r"width 8, the student of width 512.*feature store"):
        teacher.refuse_misfit(student(reads_features=True, feature_width=512))


def test_a_teacher_is_asked_in_its_own_languages_alone(saved):
    teacher = Teacher(str(saved))
    teacher.refuse_languages(["en"])
    with pytest.raises(ValueError, match=r"trained on en, de and is to be asked in sw"):
        teacher.refuse_languages(["en", "sw"])
    teacher.model.languages = ()  # a model that doesn't know is believed
    teacher.refuse_languages(["sw"])


def cut_at(data, folder, tokens):
    return save(data, folder, model={"text": {"tokenizer": {"max_tokens": tokens}}})


def test_a_teacher_that_would_cut_many_captions_is_refused(tiny_data, tmp_path):
    rows, teacher = rows_of(tiny_data), Teacher(str(cut_at(tiny_data, tmp_path, 8)))
    with pytest.raises(ValueError, match=r"8 tokens and would cut \d+ of 64.*max_tokens"):
        teacher.remember(rows.dataset, rows.views, "source", images=True)


def test_a_few_cut_captions_are_counted(saved, tiny_data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(teachers, "MOST_CUT", 0.2)
    rows = rows_of(tiny_data)
    texts = [item.captions[0].text for item in map(rows.dataset.__getitem__, range(64))]
    lengths = sorted(Teacher(str(saved)).model.text.tokenizer.lengths(texts))
    limit = lengths[-1] - 1
    cut = sum(length > limit for length in lengths)
    assert 0 < cut <= 12
    teacher = Teacher(str(cut_at(tiny_data, tmp_path / "cut", limit)))
    with caplog.at_level(logging.WARNING):
        teacher.remember(rows.dataset, rows.views, "source", images=False)
    assert f"cuts {cut} of 64 captions" in caplog.text


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Teacher(str(tmp_path / "nowhere"))
