"""What the loop and its surroundings call of a method beside its losses."""

import pytest
import tiny
import torch
from safetensors.torch import load_file

from xlcm.encoders.features import FeatureEncoder
from xlcm.encoders.image_timm import TimmImageEncoder
from xlcm.methods.contrastive import Contrastive
from xlcm.registry import methods


class Watched(Contrastive):
    """Contrastive learning beside a layer that rests at times, and a diary of what was called."""

    def __init__(self, retriever, *, rests_until: float = 0.0, who: str = "extra") -> None:
        super().__init__(retriever)
        self.extra = torch.nn.Linear(16, 16)
        self.rests_until, self.who = rests_until, who
        self.epochs, self.remembered = [], []

    def begin(self, epoch):
        self.epochs.append(epoch)
        self.now = epoch

    def resting(self):
        return (self.who,) if self.now < self.rests_until else ()

    def remember(self, dataset, views, *, fixed, workers, folder):
        self.remembered.append((len(dataset), list(views.views), fixed))
        self.kept = (workers, folder)

    def losses(self, encoded):
        terms = super().losses(encoded)
        terms["image_source"] = (
            terms["image_source"] + 100 * self.extra(encoded["image"]).pow(2).mean()
        )
        return terms


@pytest.fixture(scope="module", autouse=True)
def registered():
    methods.register("watched")(Watched)
    yield
    methods._parts.pop("watched")


def watched(data, output, method=(), /, **sections):
    """Return a config with that method."""
    tree = tiny.tree(data, output, **sections)
    return {**tree, "method": {"name": "watched", **dict(method)}}


def test_begin_gets_the_passes_over_the_rows_before_each_step(tiny_data, tmp_path):
    run = tiny.train(watched(tiny_data, tmp_path, run={"steps": 5, "accumulate": 2}))
    assert run.method.epochs == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_begin_goes_on_where_a_stopped_run_was(tiny_data, tmp_path):
    config = watched(tiny_data, tmp_path, run={"steps": 6, "save_every": 1})
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=3)
    assert tiny.train(config).method.epochs == [0.75, 1.0, 1.25]


ALL = {"steps": 6, "save_every": 1, "keep_checkpoints": 9}


def changed(output, one, other):
    """Return the names of the parameters that differ between two checkpoints."""
    left, right = tiny.weights(output, one), tiny.weights(output, other)
    return {name for name in left if not torch.equal(left[name], right[name])}


def test_what_rests_keeps_its_weights_and_moments_and_is_no_part_of_the_norm(tiny_data, tmp_path):
    config = watched(tiny_data, tmp_path / "a", {"rests_until": 1.0}, run=ALL)
    tiny.train(config)
    assert "retriever.log_scale" in changed(tmp_path / "a", 1, 4)
    assert not any(name.startswith("extra") for name in changed(tmp_path / "a", 1, 4))
    file = tmp_path / "a" / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    moments = {key.removeprefix("/state/"): tensor for key, tensor in load_file(file).items()}
    assert moments["extra.weight/step"] == 0
    assert not moments["extra.weight/exp_avg"].any()
    assert moments["retriever.log_scale/step"] == 4
    assert {"extra.weight", "extra.bias"} <= changed(tmp_path / "a", 4, 5)
    tiny.train(
        watched(tiny_data, tmp_path / "b", {"rests_until": 9.0, "who": "retriever"}, run=ALL)
    )
    assert changed(tmp_path / "b", 1, 6) == {"extra.weight", "extra.bias"}
    tiny.train(watched(tiny_data, tmp_path / "c", run={**ALL, "steps": 1}))
    one, other, whole = (tiny.metrics(tmp_path / f)[0]["grad_norm"] for f in "abc")
    assert one**2 + other**2 == pytest.approx(whole**2, rel=1e-5)
    assert min(one, other) > 0.01 * whole


def test_a_run_whose_parts_rest_resumes_bit_for_bit(tiny_data, tmp_path):
    """Also where a part has never had a gradient when the checkpoint is written."""
    for crash in (2, 5):
        whole, cut = tmp_path / f"whole{crash}", tmp_path / f"cut{crash}"
        tiny.train(watched(tiny_data, whole, {"rests_until": 1.0}, run=ALL))
        config = watched(tiny_data, cut, {"rests_until": 1.0}, run=ALL)
        with pytest.raises(tiny.Crash):
            tiny.train(config, crash_before=crash)
        tiny.train(config)
        assert tiny.checkpoint(whole, 6) == tiny.checkpoint(cut, 6)
        assert tiny.metrics(whole) == tiny.metrics(cut)


def test_two_processes_let_the_same_parts_rest(tiny_data, tmp_path, processes):
    config = watched(
        tiny_data, tmp_path / "two", {"rests_until": 1.0}, run=ALL,
        model={"text": {"dropout": 0.0}},
    )  # fmt: skip
    found = processes.run(2, train_watched, config)
    assert found == [2, 2]
    config["run"]["output"] = str(tmp_path / "one")
    tiny.train(config)
    for step in (4, 6):
        one, two = tiny.weights(tmp_path / "one", step), tiny.weights(tmp_path / "two", step)
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5)
    assert not any(name.startswith("extra") for name in changed(tmp_path / "two", 1, 4))


def train_watched(config):
    """Train in a process of the pool, which knows nothing of the method yet."""
    methods.register("watched")(Watched)
    return tiny.train_in_pool([config])["processes"]


def test_a_part_that_is_none_can_not_rest(tiny_data, tmp_path):
    config = watched(tiny_data, tmp_path, {"rests_until": 1.0, "who": "extr"})
    with pytest.raises(ValueError, match=r"Watched\.resting\(\) names extr.*extra, retriever"):
        tiny.train(config)


@pytest.mark.parametrize(
    ("augment", "fixed"), [({}, True), ({"flip": 0.5}, False)], ids=["plain", "flipped"]
)
def test_a_method_may_remember_what_stays_as_it_is(tiny_data, tmp_path, augment, fixed):
    sections = {**tiny.pictures(tiny_data), "run": {"steps": 1}, "data": {"augment": augment}}
    run = tiny.train(watched(tiny_data, tmp_path / "pictures", **sections))
    assert run.method.remembered == [(64, ["source", "target"], fixed)]
    features = {"run": {"steps": 1}, "data": {"augment": augment}}
    run = tiny.train(watched(tiny_data, tmp_path / "features", **features))
    assert run.method.remembered == [(64, ["source", "target"], True)]  # nothing is flipped there
    assert run.method.kept == (0, tmp_path / "features" / "teachers")


def test_encoders_say_whether_they_read_features():
    assert FeatureEncoder.reads_features
    assert FeatureEncoder(width=7).feature_width == 7
    assert not TimmImageEncoder.reads_features
