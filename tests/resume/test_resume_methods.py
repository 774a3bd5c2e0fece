"""Runs with an opponent or with teachers that were cut off are the unbroken ones, bit for bit."""

import itertools

import pytest
import tiny
import torch

from xlcm.config import merge

RUN = {"steps": 9, "save_every": 1, "keep_checkpoints": 20}  # epochs of four batches
TARGET = {"langs": ["de", "fr"], "origin": ["mt"], "of": "source"}


def nrccr(data, output, **method):
    text = {
        "name": "refined", "width": 16, "heads": 2, "key_width": 8, "positions": 32,
        "encoder": tiny.tree(data, output)["model"]["text"],
    }  # fmt: skip
    back = {"langs": ["en"], "origin": ["back"], "of": "target"}
    return tiny.tree(
        data, output, **tiny.translated(data, target=TARGET, back=back), run=RUN,
        model={"text": text, "text_head": "batch_norm", "image_head": "batch_norm"},
        method={"name": "nrccr", **method},
    )  # fmt: skip


def cl2cm(data, output, **method):
    spec = {"name": "cl2cm", "schedule": "staged", "afterwards": "freeze", **method}
    return tiny.tree(
        data, output, **tiny.translated(data, target=TARGET), run=RUN, method=spec
    )  # fmt: skip


def translate_train(data, output, **method):
    targets = {"langs": ["de", "fr"], "origin": ["mt"], "of": "source", "every": True}
    return tiny.tree(
        data, output, **tiny.translated(data, targets=targets), run=RUN,
        model={"text": {"tokenizer": {"max_tokens": 64}}},  # a teacher may cut few captions
        method={"name": "translate_train", **method},
    )  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tiny_data, tmp_path_factory):
    folders = []
    for seed in (1, 2):
        output = tmp_path_factory.mktemp(f"teacher{seed}")
        config = merge(
            translate_train(tiny_data, output),
            {"run": {"seed": seed}, "model": {"width": 8 * seed}},
        )
        run = tiny.train(config)
        folders.append(str(run.trained.retriever.save_pretrained(output / "model")))
    return folders


def same(one, other):
    """All that a run left."""
    assert tiny.metrics(one) == tiny.metrics(other)
    assert len(tiny.metrics(one)) == RUN["steps"]
    assert tiny.checkpoint(one, RUN["steps"]) == tiny.checkpoint(other, RUN["steps"])


def cut_and_continued(config_of, data, tmp_path, after, **method):
    whole = tiny.train(config_of(data, tmp_path / "whole", **method))
    config = config_of(data, tmp_path / "cut", **method)
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=after)
    torch.manual_seed(999)
    again = tiny.train(config)
    assert again.names == whole.names[after:]
    same(tmp_path / "whole", tmp_path / "cut")
    losses = [record["loss"] for record in tiny.metrics(tmp_path / "whole")]
    return whole, losses


@pytest.mark.parametrize("strength", ["not_so_weak", "strong"])
def test_nrccr_resumes_with_its_opponent_bit_for_bit(tiny_data, tmp_path, strength):
    whole, losses = cut_and_continued(nrccr, tiny_data, tmp_path, 6, discriminator=strength)
    opponent = whole.method.opponent
    assert opponent.steps == RUN["steps"]
    saved = tiny.weights(tmp_path / "cut", RUN["steps"])
    assert torch.equal(saved["opponent.second_moment"], opponent.second_moment)
    assert saved["opponent.second_moment"].any()
    assert losses[-1] < losses[0]


def test_the_opponents_moments_matter_or_the_test_above_would_prove_little(tiny_data, tmp_path):
    """A run whose opponent forgets its moments half way goes elsewhere."""
    tiny.train(nrccr(tiny_data, tmp_path / "whole"))
    config = nrccr(tiny_data, tmp_path / "cut")

    def forget(method):
        forward = method.forward
        calls = []

        def forgetful(batch):
            calls.append(1)
            if len(calls) == 5:
                for name in ("first_moment", "second_moment", "steps"):
                    getattr(method.opponent, name).zero_()
            return forward(batch)

        method.forward = forgetful

    tiny.train(config, wrap=forget)
    one, other = (tiny.weights(tmp_path / name, RUN["steps"]) for name in ("whole", "cut"))
    assert not torch.equal(one["opponent.second_moment"], other["opponent.second_moment"])
    key = next(name for name in one if name.startswith("opponent.module."))
    assert not torch.equal(one[key], other[key])


def test_cl2cm_resumes_in_its_second_stage_bit_for_bit(tiny_data, tmp_path):
    whole, _ = cut_and_continued(cl2cm, tiny_data, tmp_path, 6)
    assert whole.method.resting() == ("cross_lingual",)
    stages = [tiny.weights(tmp_path / "whole", step) for step in (1, 4, 9)]
    for prefix, moved in (("retriever.", (False, True)), ("cross_lingual.", (True, False))):
        names = [n for n in stages[0] if n.startswith(prefix)]
        assert names
        for (before, after), changed in zip(itertools.pairwise(stages), moved):
            differs = [n for n in names if not torch.equal(before[n], after[n])]
            assert bool(differs) == changed, (prefix, differs[:3])


@pytest.mark.parametrize("targets", ["pooled", "learned"])
def test_c2kd_resumes_bit_for_bit(tiny_data, tmp_path, teachers, targets):
    def config_of(data, output, **method):
        return merge(
            translate_train(data, output),
            {"method": {"name": "c2kd", "teachers": teachers, **method}},
        )

    whole, losses = cut_and_continued(config_of, tiny_data, tmp_path, 6, targets=targets)
    assert losses[-1] < losses[0]
    saved = tiny.weights(tmp_path / "cut", RUN["steps"])
    assert not [name for name in saved if "teacher" in name]
    assert whole.method.teachers[0]._text is not None


def test_translate_train_resumes_bit_for_bit(tiny_data, tmp_path):
    _, losses = cut_and_continued(translate_train, tiny_data, tmp_path, 6)
    assert losses[-1] < losses[0]
    assert {"contrastive.source", "contrastive.de", "contrastive.fr"} <= set(
        tiny.metrics(tmp_path / "cut")[0]
    )
