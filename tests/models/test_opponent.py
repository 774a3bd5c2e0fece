import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xlcm.distributed import local_rows, world
from xlcm.losses.adversarial import discriminator_loss, fooling_loss
from xlcm.models.discriminator import Discriminator
from xlcm.models.opponent import Opponent

WIDTH, ROWS, STEPS = 5, 12, 6


def data(seed: int = 0):
    """Means of real and fake captions, `(ROWS, WIDTH)` each."""
    generator = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return real + 1, fake - 1


def network() -> Discriminator:
    torch.manual_seed(3)
    return Discriminator(WIDTH, strength="not_so_weak").double()


def step(opponent: Opponent, real, fake):
    return opponent.step(lambda run: discriminator_loss(run(real), run(fake)))


def weights(opponent: Opponent) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in opponent.module.state_dict().items()}


# -- its own Adam -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3}])
@pytest.mark.parametrize("strength", ["weak", "not_so_weak", "strong"])
def test_steps_are_those_of_torch_adam(strength, options):
    torch.manual_seed(3)
    plain = Discriminator(WIDTH, strength=strength)
    opponent = Opponent(copy.deepcopy(plain), **options)
    adam = torch.optim.Adam(plain.parameters(), **{"lr": 1e-3, **options})
    for number in range(STEPS):
        real, fake = (rows.float() for rows in data(number))
        if strength == "strong":
            real, fake = (rows.reshape(4, 3, WIDTH) for rows in (real, fake))
        adam.zero_grad()
        wanted = discriminator_loss(plain(real), plain(fake))
        wanted.backward()
        adam.step()
        got = step(opponent, real, fake)
        torch.testing.assert_close(got, wanted.detach(), atol=1e-6, rtol=0)
        assert not got.requires_grad
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(opponent.module.get_buffer(name), value, atol=1e-6, rtol=0)
    assert int(opponent.steps) == STEPS


def test_it_learns_to_tell_two_sides_apart():
    opponent = Opponent(network(), lr=0.01)
    losses = [step(opponent, *data()).item() for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]


def test_it_steps_where_gradients_are_off():
    one, other = Opponent(network()), Opponent(network())
    step(one, *data())
    with torch.no_grad():
        step(other, *data())
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values()))
    assert int(other.steps) == 1


def test_the_step_sends_nothing_to_its_arguments_and_leaves_their_graph_whole():
    opponent = Opponent(network())
    source = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    features = source.square()

    def loss(run):
        made = discriminator_loss(run(features), run(features + 1))
        (reached,) = torch.autograd.grad(made, source, allow_unused=True, retain_graph=True)
        assert reached is None
        return made

    opponent.step(loss)
    assert source.grad is None
    fooling_loss(opponent(features)).backward()  # needs the graph behind the features
    assert source.grad.abs().sum() > 0


def test_fooling_uses_the_new_weights_and_their_gradient_is_discarded():
    opponent, plain = Opponent(network()), network()
    step(opponent, *data())
    plain.load_state_dict(weights(opponent))
    _, fake = data()
    ours, theirs = (fake.clone().requires_grad_() for _ in range(2))
    fooling_loss(opponent(ours)).backward()
    fooling_loss(plain(theirs)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    before = weights(opponent)
    assert all(not value.requires_grad for value in before.values())
    assert all(torch.equal(v, opponent.module.get_buffer(n)) for n, v in before.items())


def test_a_step_between_forward_and_backward_is_an_error_and_no_wrong_gradient():
    opponent = Opponent(network())
    real, fake = data()
    loss = fooling_loss(opponent(fake.requires_grad_()))
    step(opponent, real, fake)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -- unseen by others ---------------------------------------------------------------------------


def test_weights_are_buffers_of_the_same_names_and_values():
    plain = network()
    opponent = Opponent(network())
    assert list(opponent.parameters()) == []
    assert weights(opponent).keys() == dict(plain.named_parameters()).keys()
    for name, parameter in plain.named_parameters():
        assert torch.equal(opponent.module.get_buffer(name), parameter)
    real, _ = data()
    assert torch.equal(opponent(real), plain(real))


def test_a_saved_opponent_goes_on_bit_for_bit():
    unbroken, first = Opponent(network()), Opponent(network())
    for number in range(4):
        step(unbroken, *data(number))
    for number in range(2):
        step(first, *data(number))
    second = Opponent(Discriminator(WIDTH).double())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for number in range(2, 4):
        step(second, *data(number))
    ours, theirs = second.state_dict(), unbroken.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_buffers_put_back_undo_a_step():
    opponent = Opponent(network())
    step(opponent, *data(0))
    before = [buffer.detach().clone() for buffer in opponent.buffers()]
    step(opponent, *data(1))
    for buffer, old in zip(opponent.buffers(), before):  # as the loop does after a bad step
        buffer.detach().copy_(old)
    other = Opponent(network())
    step(other, *data(0))
    for one in (opponent, other):
        step(one, *data(2))
    assert all(torch.equal(a, b) for a, b in zip(opponent.buffers(), other.buffers()))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(poison):
    opponent = Opponent(network())
    step(opponent, *data())
    before = [buffer.clone() for buffer in opponent.buffers()]
    real, fake = data()
    real[3, 2] = poison
    loss = step(opponent, real, fake)  # of infinity tanh makes a finite loss, but no gradient
    assert bool(loss.isfinite()) == (poison == float("inf"))
    assert all(torch.equal(a, b) for a, b in zip(opponent.buffers(), before))


def test_a_loss_that_is_not_finite_changes_nothing():
    opponent = Opponent(network())
    before = [buffer.clone() for buffer in opponent.buffers()]
    real, _ = data()
    opponent.step(lambda run: run(real).mean() + torch.tensor(float("inf")).double())
    assert all(torch.equal(a, b) for a, b in zip(opponent.buffers(), before))


def test_half_precision_around_it_changes_its_type_nowhere():
    opponent, exact = Opponent(network().float()), Opponent(network().float())
    real, fake = (rows.bfloat16() for rows in data())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(opponent, real, fake)
        logits = opponent(real)
    step(exact, real.float(), fake.float())
    assert logits.dtype == torch.float32
    assert torch.equal(logits, exact(real.float()))


# -- refusals -----------------------------------------------------------------------------------


def test_a_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Tanh has no parameters"):
        Opponent(nn.Tanh())


def test_a_shared_parameter_is_refused():
    one = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"one parameter at several places \(0\.weight"):
        Opponent(nn.Sequential(one, one))


# -- several processes --------------------------------------------------------------------------


class Adversary(nn.Module):
    """A towers' stand-in that fools an opponent, as a method does."""

    def __init__(self) -> None:
        super().__init__()
        self.opponent = Opponent(network())
        torch.manual_seed(4)
        self.tower = nn.Linear(WIDTH, WIDTH).double()

    def forward(self, real, fake):
        real, fake = self.tower(real), self.tower(fake)
        step(self.opponent, real, fake)
        return fooling_loss(self.opponent(fake)) + F.mse_loss(real, torch.zeros_like(real))


def train() -> dict:
    """Three steps of this process's rows; gradients and all weights afterwards."""
    model = Adversary()
    wrapped = DistributedDataParallel(model) if world() > 1 else model
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    mine = local_rows(ROWS // world())
    gradients = []
    for number in range(3):
        real, fake = (rows[mine] for rows in data(number))
        sgd.zero_grad()
        wrapped(real, fake).backward()
        sgd.step()
        gradients += [p.grad.tolist() for p in model.parameters()]
    return {"gradients": gradients, "state": {k: v.tolist() for k, v in model.state_dict().items()}}


def poisoned() -> dict:
    """A step in which the last process alone has a row that is not finite."""
    opponent = Opponent(network())
    before = [buffer.clone() for buffer in opponent.buffers()]
    real, fake = data()
    real[-1] = float("nan")
    mine = local_rows(ROWS // world())
    step(opponent, real[mine], fake[mine])
    return {"same": all(torch.equal(a, b) for a, b in zip(opponent.buffers(), before))}


def both() -> dict:
    """One job of each kind."""
    return {**train(), **poisoned()}


@pytest.mark.parametrize("number", [2, 3])
def test_many_processes_give_the_gradients_and_weights_of_one(processes, number):
    wanted = train()
    by_rank = processes.run(number, both)
    assert all(result["same"] for result in by_rank), "one bad process must stop all of them"
    for result in by_rank:
        for one, many in zip(wanted["gradients"], result["gradients"]):
            one, many = torch.tensor([one, many], dtype=torch.float64)
            assert (many - one).norm() / one.norm() < 1e-10
        for name, value in wanted["state"].items():
            torch.testing.assert_close(
                torch.tensor(result["state"][name]), torch.tensor(value), atol=1e-8, rtol=0
            )
