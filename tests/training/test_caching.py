"""Gradient caching and pieces of like length: the gradient of the whole batch, once."""

import math
import weakref
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import small_models
import tiny
import torch
from accelerate import Accelerator

from xlcm.config import ConfigError, build, check, merge
from xlcm.encoders.heads import BatchNormHead
from xlcm.methods.base import Method
from xlcm.models import teacher
from xlcm.pieces import counts_of, cut, padding
from xlcm.registry import methods
from xlcm.training import batch_size, caching, loop
from xlcm.training.caching import cached_step
from xlcm.training.loop import announce
from xlcm.training.settings import RunConfig
from xlcm.training.workers import forget_processes

ROWS = 12
DROPOUT = {"dropout": 0.3, "token_dropout": 0.2}
SPECS = {
    "contrastive": {"name": "contrastive", "text_weight": 0.5},
    "triplet": {"name": "contrastive", "image_loss": {"name": "triplet", "reduction": "sum"}},
    "translate_train": {"name": "translate_train"},
    "c2kd": {"name": "c2kd", "teachers": ["small1", "small2"], "targets": "learned"},
    "cl2cm": {"name": "cl2cm", "average_pieces": True, "marginals": "idf"},
    "cl2cm_shared": {"name": "cl2cm", "share_encoder": True, "detach_teacher": False},
    "cl2cm_first_stage": {"name": "cl2cm", "schedule": "staged"},
    "nrccr": {"name": "nrccr", "adversarial_weight": 0.5, "discriminator": "weak"},
}
TAUGHT = ("translate_train", "c2kd")


@pytest.fixture
def accelerator():
    forget_processes()
    yield Accelerator(cpu=True)
    forget_processes()


def method_of(name: str, *, dropout: bool = True, dtype: torch.dtype = torch.float64) -> Method:
    noise = DROPOUT if dropout else {}
    bag = small_models.bag(**noise)
    if name == "nrccr":
        bag = small_models.refined(noise, dropout=0.3 if dropout else 0.0)
    with mock.patch.object(teacher.DualEncoder, "from_pretrained", small_models.saved):
        torch.manual_seed(5)
        method = build(methods, SPECS[name], small_models.model(bag)).to(dtype)
    if getattr(method, "needs_idf", False):
        method.idf = torch.linspace(0.5, 3.0, 2 * small_models.VOCABULARY).to(dtype).view(2, -1)
    method.begin(0.0 if "stage" in name else 0.5)
    return method.train()


def batch_of(name: str, dtype: torch.dtype = torch.float64):
    if name in TAUGHT:
        batch = small_models.translations("de", "zh", teachers=2, rows=ROWS)
        batch.text["targets.de"].present = torch.arange(ROWS) % 3 > 0
    else:
        batch = small_models.batch("source", "target", "back", rows=ROWS)
    batch.visual.features = batch.visual.features.to(dtype)
    return batch


def found_by(method: Method, step) -> dict:
    """Return loss, terms, gradients and buffers after a step with the draws of one seed."""
    torch.manual_seed(3)
    terms, loss = step(method)
    return {
        "terms": {**{k: t.detach() for k, t in terms.items()}, "loss": loss.detach()},
        "gradients": {n: p.grad for n, p in method.named_parameters() if p.grad is not None},
        "buffers": dict(method.named_buffers()),
    }


def whole(seen):
    def step(method):
        terms = method(seen)
        loss = method.total(terms)
        loss.backward()
        return terms, loss

    return step


def cached(accelerator, pieces):
    return lambda method: cached_step(accelerator, method, method, pieces)


def differ(one: dict, other: dict) -> float:
    """Return the largest relative difference between all that two steps left."""
    worst = 0.0
    for kind, values in one.items():
        assert values.keys() == other[kind].keys(), kind
        assert values
        for name, value in values.items():
            # a bias of attention's keys has no effect, hence a gradient of rounding alone
            size = max(value.double().norm().item(), 1e-3)
            gap = (value.double() - other[kind][name].double()).norm().item() / size
            worst = max(worst, gap)
    return worst


# -- the same gradient ----------------------------------------------------------------------------


def test_no_method_is_left_out_of_these_comparisons():
    assert {spec["name"] for spec in SPECS.values()} == tiny.built_in(methods)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("name", SPECS)
def test_cached_gradients_are_those_of_one_graph_with_dropout(accelerator, name, size):
    pieces = cut(batch_of(name), size)
    assert [len(piece.ids) for piece in pieces.batches] == ([5, 5, 2] if size == 5 else [6, 6])
    one = found_by(method_of(name), whole(pieces))
    other = found_by(method_of(name), cached(accelerator, pieces))
    assert differ(one, other) < 1e-12
    assert one["gradients"].keys() == {
        n for n, p in method_of(name).named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("name", SPECS)
def test_cached_gradients_are_those_of_the_whole_batch(accelerator, name):
    batch = batch_of(name)
    one = found_by(method_of(name, dropout=False), whole(batch))
    other = found_by(method_of(name, dropout=False), cached(accelerator, cut(batch, 5)))
    assert differ(one, other) < 1e-12


@pytest.mark.parametrize("name", ["contrastive", "triplet", "c2kd", "cl2cm"])
def test_cached_gradients_in_float32_are_equal_to_1e_6(accelerator, name):
    pieces = cut(batch_of(name, torch.float32), 5)
    one = found_by(method_of(name, dtype=torch.float32), whole(pieces))
    other = found_by(method_of(name, dtype=torch.float32), cached(accelerator, pieces))
    assert differ(one, other) < 1e-6


def test_dropout_that_is_not_replayed_is_seen_by_the_tests_above(accelerator, monkeypatch):
    pieces = cut(batch_of("contrastive"), 5)
    one = found_by(method_of("contrastive"), whole(pieces))
    monkeypatch.setattr(caching, "set_random_state", lambda state, device: None)
    other = found_by(method_of("contrastive"), cached(accelerator, pieces))
    assert differ(one, other) > 0.01


def test_every_piece_draws_the_same_twice_bit_for_bit(accelerator):
    method, seen = method_of("contrastive"), []
    encode = method.encode

    def look(batch):
        encoded = encode(batch)
        seen.append({name: tensor.detach().clone() for name, tensor in encoded.items()})
        return encoded

    method.encode = look
    found_by(method, cached(accelerator, cut(batch_of("contrastive"), 3)))
    first, second = seen[:3], seen[4:]  # of four pieces the last is encoded once
    assert len(second) == 3
    for one, other in zip(first, second):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_losses_run_once_over_the_whole_batch_with_what_has_no_gradient_as_it_is(accelerator):
    method, seen = method_of("c2kd"), []
    losses = method.losses

    def look(encoded):
        seen.append({name: tensor.requires_grad for name, tensor in encoded.items()})
        assert all(len(tensor) == ROWS for tensor in encoded.values())
        return losses(encoded)

    method.losses = look
    found_by(method, cached(accelerator, cut(batch_of("c2kd"), 5)))
    (learns,) = seen
    names = {"image", "source", "targets.de", "targets.zh"}
    assert {name for name, does in learns.items() if does} == names
    assert "present.targets.de" in learns
    assert "teacher0.text" in learns


def test_one_process_that_a_launcher_wrapped_gives_the_same_gradients(accelerator, tmp_path):
    pieces = cut(batch_of("contrastive"), 3)
    one = found_by(method_of("contrastive"), cached(accelerator, pieces))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        method = method_of("contrastive")
        wrapped = torch.nn.parallel.DistributedDataParallel(method)
        other = found_by(method, lambda plain: cached_step(accelerator, wrapped, plain, pieces))
    finally:
        torch.distributed.destroy_process_group()
    assert differ(one, other) == 0


def test_a_share_is_a_factor_of_the_gradient(accelerator):
    pieces = cut(batch_of("contrastive"), 5)
    one = found_by(method_of("contrastive"), cached(accelerator, pieces))
    other = found_by(
        method_of("contrastive"), lambda m: cached_step(accelerator, m, m, pieces, share=0.25)
    )
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(other["gradients"][name], gradient / 4, rtol=1e-12, atol=0)
    assert other["terms"] == one["terms"]


def test_the_temperature_of_frozen_towers_learns_as_from_the_whole_batch(accelerator):
    def frozen():
        method = method_of("contrastive")
        for name, parameter in method.named_parameters():
            parameter.requires_grad_(name == "retriever.log_scale")
        return method

    pieces = cut(batch_of("contrastive"), 5)
    one = found_by(frozen(), whole(pieces))
    assert list(one["gradients"]) == ["retriever.log_scale"]
    assert differ(one, found_by(frozen(), cached(accelerator, pieces))) < 1e-12


# -- pieces ---------------------------------------------------------------------------------------


def test_pieces_are_sorted_trimmed_and_put_together_again():
    batch = batch_of("translate_train")
    batch.names = tuple(f"item{row}" for row in range(ROWS))
    pieces = cut(batch, 5)
    lengths = sum(text.mask.sum(dim=1) for text in batch.text.values())
    order = torch.cat(pieces.rows)
    assert sorted(order.tolist()) == list(range(ROWS))
    assert lengths[order].tolist() == sorted(lengths.tolist(), reverse=True)
    assert torch.equal(pieces.whole([piece.ids for piece in pieces.batches]), batch.ids)
    for piece, rows in zip(pieces.batches, pieces.rows):
        assert piece.names == tuple(f"item{row}" for row in rows.tolist())
        assert torch.equal(piece.visual.features, batch.visual.features[rows])
        for name, text in piece.text.items():
            given = batch.text[name]
            assert text.ids.shape[1] == int(text.mask.sum(dim=1).max())
            assert torch.equal(text.ids, given.ids[rows][:, : text.ids.shape[1]])
            assert text.keys == tuple(given.keys[row] for row in rows.tolist())
        assert torch.equal(piece.text["targets.de"].present, batch.text["targets.de"].present[rows])
    tokens, positions, before = map(int, pieces.counts)
    assert tokens == int(lengths.sum()) < positions < before
    assert padding([pieces.counts]) == {
        "padding": 1 - tokens / positions, "padding_whole": 1 - tokens / before
    }  # fmt: skip
    assert padding([counts_of(batch)]) == {"padding": 1 - tokens / before}


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_in_pieces_of_one_graph_has_the_terms_and_gradients_of_the_whole(name):
    batch = batch_of(name)
    one = found_by(method_of(name, dropout=False), whole(batch))
    other = found_by(method_of(name, dropout=False), whole(cut(batch, 5)))
    assert differ(one, other) < 1e-12


# -- what is refused ------------------------------------------------------------------------------


def run_of(**options):
    return check(RunConfig, {"steps": 1, "global_batch": 16, **options})


@pytest.mark.parametrize("option", ["micro_batch", "length_pieces"])
def test_methods_that_pieces_would_change_are_refused_with_the_way_out(accelerator, option):
    run = run_of(**{option: 4})
    strong = build(
        methods, {"name": "nrccr", "discriminator": "strong"},
        small_models.model(small_models.refined()),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=rf"run\.{option}: nrccr.*tokens.*leave run\.{option}"):
        batch_size.refuse_pieces(accelerator, strong, run)
    normed = build(methods, SPECS["contrastive"], small_models.model())
    normed.retriever.image_head = BatchNormHead(6, 5)
    with pytest.raises(ConfigError, match=r"retriever\.image_head\.norm normalises.*another head"):
        batch_size.refuse_pieces(accelerator, normed, run)
    normed.retriever.image_head.requires_grad_(False).eval()  # as a frozen tower has it
    batch_size.refuse_pieces(accelerator, normed, run)
    released = build(
        methods, SPECS["nrccr"], small_models.model(small_models.refined(legacy_padding=True))
    )
    with pytest.raises(ConfigError, match=r"legacy_padding.*set legacy_padding to false"):
        batch_size.refuse_pieces(accelerator, released, run)
    for method in (strong, normed, released):
        batch_size.refuse_pieces(accelerator, method, run_of())


def test_sizes_that_do_not_fit_the_batch_are_refused():
    with pytest.raises(ConfigError, match=r"micro_batch=9.*only 8 rows.*16 on 2 processes.*most 8"):
        batch_size.rows_of_process(run_of(micro_batch=9), 2)
    with pytest.raises(ConfigError, match=r"length_pieces=17.*only 16 rows.*1 process"):
        batch_size.rows_of_process(run_of(length_pieces=17), 1)
    with pytest.raises(ConfigError, match=r"global_batch=16 is not divisible by 3.*15 or 18"):
        batch_size.rows_of_process(run_of(), 3)
    assert batch_size.rows_of_process(run_of(micro_batch=8), 2) == 8
    with pytest.raises(ConfigError, match=r"both cut the batch"):
        run_of(micro_batch=4, length_pieces=2)


@pytest.mark.parametrize("spread", ["FSDP", "DEEPSPEED"])
def test_sizes_that_spread_parameters_can_not_try_are_refused(accelerator, spread):
    accelerator.state.distributed_type = batch_size.DistributedType(spread)
    accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=2)
    method = build(methods, SPECS["contrastive"], small_models.model())
    with pytest.raises(ConfigError, match=rf"auto: with {spread}.*give a number of rows"):
        batch_size.refuse_pieces(accelerator, method, run_of(micro_batch="auto"))
    batch_size.refuse_pieces(accelerator, method, run_of(micro_batch=4))


def test_gradient_caching_with_fsdp_1_is_refused(accelerator):
    accelerator.state.distributed_type = batch_size.DistributedType.FSDP
    accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=1)
    method = build(methods, SPECS["contrastive"], small_models.model())
    with pytest.raises(ConfigError, match=r"not with FSDP.*fsdp_version: 2"):
        batch_size.refuse_pieces(accelerator, method, run_of(micro_batch=4))
    batch_size.refuse_pieces(accelerator, method, run_of(length_pieces=4))


# -- auto -----------------------------------------------------------------------------------------


def test_auto_takes_the_largest_size_that_fits_and_leaves_no_trace(accelerator):
    method, tried = method_of("contrastive"), []
    encode = method.encode

    def scarce(batch):
        # a step holds the gradients of the pieces before; the moments come with the optimiser
        assert all(p.grad is not None and not p.grad.any() for p in trained)
        tried.append((len(batch.ids), batch.text["source"].ids.shape[1]))
        encoded = encode(batch)
        if len(batch.ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encoded

    method.encode = scarce
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert trained
    method.register_buffer("moved", torch.zeros(()))
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    torch.manual_seed(8)
    state = torch.get_rng_state()
    size = batch_size.largest_that_fits(
        lambda n: batch_size._fits(method, batch_of("contrastive"), n), ROWS, accelerator.device
    )
    assert size == 4
    # as long as captions may be: 16 tokens
    assert tried == [(12, 16), (8, 16), (4, 16)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in method.parameters())
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_auto_says_so_if_nothing_fits(accelerator, monkeypatch):
    monkeypatch.setattr(batch_size, "largest_that_fits", lambda fits, rows, device: 0)
    accelerator.state.device = torch.device("cuda")
    with pytest.raises(ConfigError, match=r"not even one row fits.*gradient_checkpointing"):
        batch_size.choose(accelerator, None, None, 8, 0)


# -- whole runs -----------------------------------------------------------------------------------


def runs(data, folder, **changes):
    config = tiny.tree(data, folder / "one", model={"text": {"dropout": 0.0}}, run={"steps": 6})
    tiny.train(config)
    other = merge(config, {"run": {"output": str(folder / "other"), **changes}})
    return tiny.metrics(folder / "one"), tiny.train(other), tiny.metrics(folder / "other")


@pytest.mark.parametrize("change", [{"micro_batch": 5}, {"micro_batch": 16}, {"length_pieces": 3}])
def test_a_run_in_pieces_is_that_of_the_whole_batch_and_says_what_padding_it_saves(
    tiny_data, tmp_path, change, capsys
):
    one, _, other = runs(tiny_data, tmp_path, **change)
    assert len(one) == len(other) == 6
    for left, right in zip(one, other):
        for key in ("loss", "grad_norm", "scale"):
            assert right[key] == pytest.approx(left[key], rel=1e-5), key
    if change["micro_batch" if "micro_batch" in change else "length_pieces"] == 16:
        assert "padding_whole" not in other[0]  # all rows at once
    else:
        assert all(0 <= row["padding"] < row["padding_whole"] for row in other)
        assert "padding_whole 0." in capsys.readouterr().out
        assert [row["padding"] for row in one] == [row["padding_whole"] for row in other]


def test_the_first_line_says_how_many_rows_go_at_a_time():
    batching = SimpleNamespace(batches=lambda epoch: np.zeros((1, 16, 2), dtype=np.int32))
    loader = SimpleNamespace(stream=SimpleNamespace(batching=batching), batches_per_epoch=1)
    method = torch.nn.Linear(1, 1)
    for options, told in (
        ({}, "1 x 16 rows; each"),
        ({"micro_batch": 5}, "1 x 16 rows, 5 of them at a time; each"),
        ({"length_pieces": 3}, "1 x 16 rows, 6 of them at a time; each"),
        ({"micro_batch": 16}, "1 x 16 rows; each"),
    ):
        assert told in announce(loader, run_of(**options), method)


def test_accumulated_batches_are_cached_one_by_one(tiny_data, tmp_path):
    config = tiny.tree(
        tiny_data, tmp_path / "one", model={"text": {"dropout": 0.0}},
        run={"steps": 3, "accumulate": 2},
    )  # fmt: skip
    tiny.train(config)
    tiny.train(merge(config, {"run": {"output": str(tmp_path / "two"), "micro_batch": 6}}))
    for left, right in zip(tiny.metrics(tmp_path / "one"), tiny.metrics(tmp_path / "two")):
        for key in ("loss", "grad_norm"):
            assert right[key] == pytest.approx(left[key], rel=1e-5), key


def test_pieces_of_a_step_are_let_go_before_the_next_ones_are_moved(
    tiny_data, tmp_path, monkeypatch
):
    moved, before = loop._moved, []

    def look(batch, device, size):
        assert all(old() is None for old in before)
        seen = moved(batch, device, size)
        before.extend(weakref.ref(piece.ids) for piece in seen.batches)
        return seen

    monkeypatch.setattr(loop, "_moved", look)
    tiny.train(tiny.tree(tiny_data, tmp_path, run={"steps": 3, "micro_batch": 5}))
    assert len(before) == 3 * 4


def test_a_batch_is_held_in_pieces_alone_while_its_step_is_made(tiny_data, tmp_path, monkeypatch):
    moved, whole = loop._moved, []

    def look(batch, device, size):
        whole.append(weakref.ref(batch.ids))
        return moved(batch, device, size)

    def watch(method):
        forward = method.forward

        def checked(*given, **options):
            assert whole[-1]() is None
            return forward(*given, **options)

        method.forward = checked

    monkeypatch.setattr(loop, "_moved", look)
    config = tiny.tree(tiny_data, tmp_path, run={"steps": 3, "micro_batch": 5})
    tiny.train(config, wrap=watch)
    assert len(whole) == 3


@pytest.mark.parametrize("micro_batch", [6, "auto"])
def test_a_cached_run_with_dropout_resumes_bit_for_bit(
    tiny_data, tmp_path, micro_batch, monkeypatch
):
    monkeypatch.setattr(batch_size, "ON_A_CPU", 7)
    run = {"steps": 6, "save_every": 1, "keep_checkpoints": 9, "micro_batch": micro_batch}
    model = {"text": {"dropout": 0.2, "token_dropout": 0.2}}
    tiny.train(tiny.tree(tiny_data, tmp_path / "whole", run=run, model=model))
    config = tiny.tree(tiny_data, tmp_path / "cut", run=run, model=model)
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=3)
    monkeypatch.setattr(batch_size, "ON_A_CPU", 3)  # what was found before holds
    tiny.train(config)
    assert tiny.metrics(tmp_path / "whole") == tiny.metrics(tmp_path / "cut")
    assert tiny.checkpoint(tmp_path / "whole", 6) == tiny.checkpoint(tmp_path / "cut", 6)


def test_a_run_may_go_on_with_another_micro_batch(tiny_data, tmp_path):
    run = {"steps": 4, "save_every": 1, "keep_checkpoints": 9}
    config = tiny.tree(tiny_data, tmp_path / "cut", run=run, model={"text": {"dropout": 0.0}})
    tiny.train(merge(config, {"run": {"output": str(tmp_path / "whole")}}))
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=2)
    tiny.train(merge(config, {"run": {"micro_batch": 3}}))
    for left, right in zip(tiny.metrics(tmp_path / "whole"), tiny.metrics(tmp_path / "cut")):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)


def test_a_non_finite_row_in_a_piece_skips_the_whole_step(tiny_data, tmp_path):
    def spoil(method):
        losses, count = method.losses, [0]

        def spoiled(encoded):
            count[0] += 1
            if count[0] == 2:
                encoded["image"].data[0] = math.nan
            return losses(encoded)

        method.losses = spoiled

    run = {"steps": 3, "micro_batch": 5, "save_every": 1, "keep_checkpoints": 9}
    tiny.train(tiny.tree(tiny_data, tmp_path, run=run), wrap=spoil)
    kept = [tiny.checkpoint(tmp_path, step)["model.safetensors"] for step in (1, 2, 3)]
    assert kept[0] == kept[1] != kept[2]
    assert [record["step"] for record in tiny.metrics(tmp_path, "nonfinite")] == [2]


def test_a_start_on_too_many_processes_or_with_too_large_pieces_stops_before_data_are_read(
    tiny_data, tmp_path
):
    config = tiny.tree(tiny_data, tmp_path, run={"micro_batch": 17})
    config["data"]["train"]["path"] = str(tmp_path / "not there")
    with pytest.raises(ConfigError, match=r"micro_batch=17.*only 16 rows"):
        tiny.train(config)
