"""The text-only network: sentences of length 1, and words without the marks around them."""

import pytest
import torch
from small_models import Numbers, bag, captions

from xlcm.encoders.heads import LinearHead
from xlcm.models.cross_lingual import CrossLingualNetwork, average_pieces
from xlcm.types import TextBatch


def network(tower=None, **options) -> CrossLingualNetwork:
    torch.manual_seed(0)
    return CrossLingualNetwork(tower or bag(), 5, LinearHead, **options).double()


def test_sentences_are_the_heads_of_the_pooled_captions_at_length_1():
    net, text = network(), captions(6, seed=1)
    out = net(text)
    wanted = net.head(net.text(text).pooled)
    torch.testing.assert_close(out.pooled, wanted / wanted.norm(dim=1, keepdim=True))


def test_words_are_the_towers_tokens_without_marks_and_padding():
    net = network()
    text = Numbers()(["7 9 11", "5"])
    out = net(text)
    assert text.ids.tolist() == [[1, 7, 9, 11, 2], [1, 5, 2, 0, 0]]
    assert out.mask.tolist() == [[False, True, True, True, False], [False, True] + 3 * [False]]
    torch.testing.assert_close(out.tokens, net.text(text).tokens)


def test_words_that_the_tower_drops_in_training_are_words_all_the_same():
    torch.manual_seed(0)
    net = network(bag(token_dropout=0.9)).train()
    text = captions(40, seed=2)
    words = text.mask & ~torch.isin(text.ids, torch.tensor([0, 1, 2]))
    assert torch.equal(net(text).mask, words)
    assert net(text).mask.any(dim=1).all()


def test_a_shared_tower_is_not_held_twice():
    tower, text = bag().double(), captions(3, seed=1)
    net = network(tower, own=False)
    assert all(name.startswith("head.") for name, _ in net.named_parameters())
    own = network(tower)
    for one, other in zip(
        (net(text, tower(text)).pooled, net(text, tower(text)).tokens),
        (own(text).pooled, own(text).tokens),
    ):
        torch.testing.assert_close(one, other)


def test_a_tower_without_tokens_gives_sentences_alone():
    out = network(bag(context="none", tokens=False))(captions(3, seed=1))
    assert out.tokens is None
    assert out.pooled.shape == (3, 5)


def test_pieces_are_averaged_to_words_as_in_loops():
    text = captions(9, seed=3)
    tokens = torch.randn(*text.ids.shape, 4, dtype=torch.float64)
    real = text.mask & ~torch.isin(text.ids, torch.tensor([0, 1, 2]))
    words, mask = average_pieces(tokens, real, Numbers.word_starts[text.ids])
    for row in range(9):
        groups: list[list[torch.Tensor]] = []
        for place, piece in enumerate(text.ids[row].tolist()):
            if real[row, place]:
                if not groups or piece % 2 == 1:  # odd pieces begin a word
                    groups.append([])
                groups[-1].append(tokens[row, place])
        assert mask[row].tolist() == [n < len(groups) for n in range(len(mask[row]))]
        for number, group in enumerate(groups):
            torch.testing.assert_close(words[row, number], torch.stack(group).mean(dim=0))


def test_one_piece_a_word_is_left_as_it_is_and_moved_to_the_front():
    tokens = torch.randn(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    words, kept = average_pieces(tokens, mask, torch.ones(2, 4, dtype=torch.bool))
    assert kept.tolist() == [[True, True, False, False], [True] * 4]
    torch.testing.assert_close(words[0, :2], tokens[0, 1:3])
    torch.testing.assert_close(words[1], tokens[1])
    assert not words[0, 2:].any()


def test_gradients_pass_through_the_average():
    mask = torch.tensor([[True, True, True, False]])
    starts = torch.tensor([[True, False, True, False]])
    tokens = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: average_pieces(t, mask, starts)[0], tokens)


@pytest.mark.parametrize("average", [False, True])
def test_padding_changes_neither_sentences_nor_words(average):
    net = network(average_pieces=average)
    text = captions(5, seed=4)
    longer = TextBatch(
        torch.nn.functional.pad(text.ids, (0, 3)), torch.nn.functional.pad(text.mask, (0, 3))
    )
    one, other = net(text), net(longer)
    torch.testing.assert_close(one.pooled, other.pooled)
    width = one.mask.shape[1]
    assert torch.equal(one.mask, other.mask[:, :width])
    assert not other.mask[:, width:].any()
    torch.testing.assert_close(one.tokens[one.mask], other.tokens[other.mask])


def test_tables_of_the_tokenizer_are_no_part_of_the_state():
    assert set(network(average_pieces=True).state_dict()) == set(network().state_dict())
