"""Trained batch norm on several processes is that of one process with all the rows."""

from unittest import mock

import pytest
import torch
from torch import nn

from xlcm import batch_norm
from xlcm.batch_norm import joined_batch_norms
from xlcm.config import ConfigError
from xlcm.distributed import rank, world

SHARES = {1: [12], 2: [1, 11], 4: [1, 4, 0, 7]}  # of 12 rows: one, or even none, on a process
LAYERS = {
    "pairs": (nn.BatchNorm1d, {}, (3,)),
    "sequences": (nn.BatchNorm1d, {"momentum": 0.3, "eps": 1e-2}, (3, 5)),
    "pictures": (nn.BatchNorm2d, {}, (3, 2, 4)),
    "channels_last": (nn.BatchNorm2d, {}, (3, 2, 4)),
    "films": (nn.BatchNorm3d, {}, (3, 2, 2, 2)),
    "no_affine": (nn.BatchNorm1d, {"affine": False}, (3,)),
    "no_averages": (nn.BatchNorm2d, {"track_running_stats": False}, (3, 2, 4)),
    "mean_of_all_batches": (nn.BatchNorm1d, {"momentum": None}, (3,)),
}
LIMITS = {torch.float32: 1e-6, torch.float64: 1e-13}


def layer_of(name):
    """A layer that has seen some rows before, in double precision."""
    kind, options, _ = LAYERS[name]
    layer = kind(3, **options).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
            if tensor is not None:
                tensor.copy_(torch.rand(3) + 0.5)  # of single precision
    return layer


def stepped(name, dtype, mine=slice(None)):
    """Call a layer twice before one backward pass, as a head that two views share."""
    torch.manual_seed(2)
    sizes = (12, *LAYERS[name][2])
    batches = [torch.randn(sizes) * 2 + 3 for _ in range(2)]
    factors = [torch.randn(sizes) for _ in range(2)]
    if name == "channels_last":
        batches = [rows.to(memory_format=torch.channels_last) for rows in batches]
    layer = layer_of(name).to(dtype)
    with joined_batch_norms(layer):
        inputs = [rows[mine].to(dtype, copy=True).requires_grad_() for rows in batches]
        outputs = [layer(rows) for rows in inputs]
        sum((out * f[mine]).sum() for out, f in zip(outputs, factors)).backward()
    for rows, out in zip(inputs, outputs):
        assert out.dtype == dtype
        assert len(rows) == 0 or out.stride() == rows.stride() == rows.grad.stride()
    return {
        "rows": {
            **{f"output {n}": out.tolist() for n, out in enumerate(outputs)},
            **{f"gradient {n}": rows.grad.tolist() for n, rows in enumerate(inputs)},
        },
        "weights": {n: p.grad.tolist() for n, p in layer.named_parameters()},
        "state": {n: value.tolist() for n, value in layer.state_dict().items()},
    }


def steps_of_share():
    """Return what each layer makes of this process's rows."""
    shares = SHARES[world()]
    begin = sum(shares[: rank()])
    mine = slice(begin, begin + shares[rank()])
    return {(name, dtype): stepped(name, dtype, mine) for name in LAYERS for dtype in LIMITS}


@pytest.mark.parametrize("number", SHARES)
def test_processes_give_what_the_ordinary_layer_gives_on_all_rows(processes, number):
    by_rank = processes.run(number, steps_of_share)
    for name in LAYERS:
        whole = stepped(name, torch.float64)
        for dtype, limit in LIMITS.items():
            found = [results[name, dtype] for results in by_rank]
            for key, wanted in whole["rows"].items():
                close([row for one in found for row in one["rows"][key]], wanted, limit)
            for key, wanted in whole["weights"].items():  # of the sum of the losses
                close(sum(numbers(one["weights"][key]) for one in found), wanted, limit)
            for one in found:
                assert one["state"] == found[0]["state"]  # bit for bit
                assert one["state"].keys() == whole["state"].keys()
                for key, wanted in whole["state"].items():
                    close(one["state"][key], wanted, limit)


def numbers(nested):
    """Return them in double precision."""
    return torch.as_tensor(nested, dtype=torch.float64)


def close(found, wanted, limit):
    """See that numbers differ by at most `limit` times their norm."""
    found, wanted = numbers(found), numbers(wanted)
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= limit * wanted.norm()


def odd_cases():
    """What else differs between a process's rows and all rows."""
    found = {}
    torch.manual_seed(3)
    everyone = torch.randn(8, 3)
    mine = everyone[4 * rank() : 4 * rank() + 4]

    def both(rows, share, **options):
        """Return the outputs and averages of the joined layer, and those of the plain one."""
        layer, plain = nn.BatchNorm1d(3, **options), nn.BatchNorm1d(3, **options)
        wanted = plain(rows)[4 * rank() : 4 * rank() + 4]
        with joined_batch_norms(layer):
            out = layer(share)
        return out, wanted, layer.running_var, plain.running_var

    out, wanted, variance, _ = both(everyone + 3000, mine + 3000, momentum=1.0)
    found["far"] = (out - wanted).abs().max().item()
    found["far_variance"] = (variance / everyone.var(0) - 1).abs().max().item()

    half = everyone.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out, wanted, variance, plain = both(half, half[4 * rank() : 4 * rank() + 4])
    found["half"] = (out.dtype == wanted.dtype == torch.bfloat16, variance.dtype == torch.float32)
    found["half_output"] = (out - wanted).abs().max().item()
    found["half_variance"] = (variance / plain - 1).abs().max().item()

    layer = nn.BatchNorm1d(3)
    with joined_batch_norms(layer):
        try:
            layer(mine[: 1 - rank()])
        except ValueError as error:
            found["one_row"] = str(error)
        layer.eval()
        if rank() == 0:  # nobody waits for the other one
            found["evaluated"] = torch.equal(layer(mine), nn.BatchNorm1d(3).eval()(mine))
        compiled = torch.compile(nn.Sequential(layer.train(), nn.ReLU()), backend="eager")
        found["compiled"] = torch.equal(compiled(mine), layer(mine).relu())
    return found


def test_precision_evaluation_compiling_and_too_few_rows(processes):
    first, second = processes.run(2, odd_cases)
    for found in (first, second):
        assert found["far"] < 1e-3  # E[x^2] - E[x]^2 would have no digit left
        assert found["far_variance"] < 1e-3
        assert found["half"] == (True, True)
        assert found["half_output"] < 0.02
        assert found["half_variance"] < 1e-6
        assert "one value a channel" in found["one_row"]
        assert "larger batch" in found["one_row"]
        assert found["compiled"]
    assert first["evaluated"]


# -- which layers, and what they are afterwards --------------------------------------------------


@pytest.fixture
def two(monkeypatch):
    """Two processes with the same rows."""
    monkeypatch.setattr(batch_norm, "world", lambda: 2)
    monkeypatch.setattr(batch_norm, "gather", lambda rows: torch.cat([rows, rows]))


def test_trained_layers_join_and_are_ordinary_ones_afterwards(two):
    net = nn.ModuleDict({
        "trained": nn.BatchNorm1d(3), "frozen": nn.BatchNorm1d(3).requires_grad_(False).eval(),
        "resting": nn.BatchNorm2d(3).eval(), "linear": nn.Linear(3, 3),
    })  # fmt: skip
    before = {name: (part, type(part)) for name, part in net.named_modules()}
    names, weights = list(net.state_dict()), list(map(id, net.parameters()))
    with joined_batch_norms(net):
        joined = {n for n, (part, kind) in before.items() if type(part) is not kind}
        assert joined == {"trained", "resting"}
        assert isinstance(net["trained"], nn.BatchNorm1d)
        assert list(net.state_dict()) == names
    assert {name: (part, type(part)) for name, part in net.named_modules()} == before
    assert list(map(id, net.parameters())) == weights


def test_a_norm_of_timm_keeps_its_activation(two):
    from timm.layers import BatchNormAct2d

    layer, plain = BatchNormAct2d(3), BatchNormAct2d(3)
    rows = torch.randn(4, 3, 2, 2, requires_grad=True)
    with joined_batch_norms(layer):
        assert type(layer) is not BatchNormAct2d
        for mode in (True, False):
            out, wanted = layer.train(mode)(rows), plain.train(mode)(rows)
            torch.testing.assert_close(out, wanted, msg=f"training: {mode}")
            if mode:
                left, right = (torch.autograd.grad(t.square().sum(), rows) for t in (out, wanted))
                torch.testing.assert_close(left, right)
            plain.load_state_dict(layer.state_dict())


def test_a_layer_with_a_forward_pass_of_its_own_is_refused_by_name(two):
    class Odd(nn.BatchNorm1d):
        def forward(self, rows):
            return -super().forward(rows)

    net = nn.Sequential(nn.BatchNorm1d(3), Odd(3))
    with pytest.raises(ConfigError, match=r"1 is a Odd.*all 2 processes.*freeze"):
        joined_batch_norms(net).__enter__()
    assert type(net[0]) is nn.BatchNorm1d
    with mock.patch.object(batch_norm, "world", return_value=1), joined_batch_norms(net):
        assert type(net[0]) is nn.BatchNorm1d  # on one process nothing is asked of a layer
    net[1].requires_grad_(False).eval()
    with joined_batch_norms(net):
        assert type(net[0]) is not nn.BatchNorm1d


# -- runs ----------------------------------------------------------------------------------------


def continued(heads, tower):
    """Go on with one run and do another, in a process of the pool."""
    import tiny
    from launched import double

    processes = tiny.join_pool()
    found = tiny.train(heads, wrap=double).trained.retriever
    torch.set_default_dtype(torch.float32)
    tiny.train(tower, wrap=double)
    return processes, type(found.text_head.norm).__name__


def test_runs_on_two_processes_are_those_of_one_even_where_it_began_them(
    tiny_data, tmp_path, processes, monkeypatch
):
    import tiny
    from launched import double
    from tiny_methods import NORMED, nrccr

    from xlcm.config import merge
    from xlcm.models import dual_encoder

    monkeypatch.setattr(dual_encoder, "_unit", dual_encoder._unit)  # brings it back afterwards
    run = {"run": {"steps": 8, "save_every": 4}}
    heads = [
        merge(merge(nrccr(tiny_data, tmp_path / name), NORMED), run) for name in ("whole", "cut")
    ]
    pictures = tiny.pictures(tiny_data, "test_resnet")
    towers = [
        tiny.tree(tiny_data, tmp_path / name, **pictures, run={"steps": 4})
        for name in ("one", "two")
    ]
    try:
        tiny.train(towers[0], wrap=double)
        torch.set_default_dtype(torch.float32)
        tiny.train(heads[0], wrap=double)
        torch.set_default_dtype(torch.float32)
        with pytest.raises(tiny.Crash):
            tiny.train(heads[1], wrap=double, crash_before=5)
    finally:
        torch.set_default_dtype(torch.float32)
    found = processes.run(2, continued, heads[1], towers[1])
    assert found == [(2, "BatchNorm1d")] * 2

    for left, right, steps, limit in (("whole", "cut", 8, 1e-6), ("one", "two", 4, 1e-6)):
        one, two = tiny.metrics(tmp_path / left), tiny.metrics(tmp_path / right)
        assert len(one) == steps
        for before, after in zip(one, two, strict=True):
            del before["padding"]  # the first process pads to its own longest captions
            for key, value in before.items():
                assert after[key] == pytest.approx(value, rel=limit), (left, before["step"], key)
    one, two = (tiny.weights(tmp_path / name, 8) for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    for key, value in one.items():  # averages too
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-6, msg=key)
