"""Token-wise similarities are those of slow loops, without the tensor of all tokens' products."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from xlcm.losses import token_tiles
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.token_wise import TokenWiseLoss, token_wise_similarity

GROUP = torch.tensor([0, 1, 0, 2, 3, 1, 4])


def tokens(items: int = 7, length: int = 5, seed: int = 0, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(items, length, 3, dtype=torch.float64, generator=generator)
    return F.normalize(drawn, dim=2).to(dtype)  # 3 wide: many products are below 0


def ragged(items: int, length: int) -> Tensor:
    return torch.arange(length) < 1 + torch.arange(items)[:, None] * 3 % length


def slowly(image, text, image_mask, text_mask, zero: bool) -> tuple[list, list]:
    """Loops over pairs and tokens in Python's floats."""

    def one_way(mine, other):
        best = [max(sum(a * b for a, b in zip(x, y)) for y in other) for x in mine]
        return sum(best) / len(best)

    def kept(item, mask):
        real = [x for x, there in zip(item.tolist(), mask.tolist()) if there]
        return real, real + [[0.0] * 3] * (zero and not mask.all())

    images = [kept(*one) for one in zip(image, image_mask)]
    texts = [kept(*one) for one in zip(text, text_mask)]
    forth = [[one_way(x[0], y[1]) for y in texts] for x in images]
    return forth, [[one_way(y[0], x[1]) for y in texts] for x in images]


def four_dimensional(image, text, image_mask=None, text_mask=None):
    """The same as one writes it down."""
    product = torch.einsum("ind,jmd->ijnm", image, text)
    n, m = image.shape[1], text.shape[1]
    image_mask = torch.ones(len(image), n).bool() if image_mask is None else image_mask
    text_mask = torch.ones(len(text), m).bool() if text_mask is None else text_mask
    of_images, of_texts = image_mask[:, None, :], text_mask[None, :, :]
    forth = product.masked_fill(~of_texts[:, :, None, :], -torch.inf).amax(3)
    back = product.masked_fill(~of_images[..., None], -torch.inf).amax(2)
    forth, back = forth.masked_fill(~of_images, 0), back.masked_fill(~of_texts, 0)
    return forth.sum(2) / of_images.sum(2), back.sum(2) / of_texts.sum(2)


@pytest.fixture
def small_tiles(monkeypatch):
    """Ragged tiles: of 2 of 7 images, of 3 of 8 captions."""
    monkeypatch.setattr(token_tiles, "IMAGE_TOKENS", 10)
    monkeypatch.setattr(token_tiles, "TEXT_TOKENS", 13)


# -- similarities -------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["excluded", "zero"])
@pytest.mark.parametrize("masked", [(), (0,), (1,), (0, 1)], ids=str)
def test_both_similarities_are_the_slow_loops(small_tiles, masked, padding):
    image, text = tokens(7, 5), tokens(8, 4, seed=1)
    masks = [ragged(*one.shape[:2]) if side in masked else None for side, one in ((0, image), (1, text))]  # fmt: skip
    whole = [torch.ones(o.shape[:2]).bool() if m is None else m for o, m in zip((image, text), masks)]  # fmt: skip
    wanted = slowly(image, text, *whole, zero=padding == "zero")
    found = token_wise_similarity(image, text, *masks, padding=padding)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(
            one, torch.tensor(other, dtype=torch.float64), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("kept", [2**27, 400, 0], ids=["all kept", "some", "made again"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_the_four_dimensional_form(
    small_tiles, monkeypatch, dtype, masked, kept
):
    monkeypatch.setattr(token_tiles, "KEPT", kept)
    sides = [tokens(7, 5, dtype=dtype), tokens(8, 4, seed=1, dtype=dtype)]
    masks = [ragged(7, 5), ragged(8, 4)] if masked else [None, None]
    weights = [torch.randn(7, 8, dtype=dtype) for _ in range(2)]
    results = []
    for compute in (four_dimensional, token_wise_similarity):
        leaves = [side.clone().requires_grad_() for side in sides]
        found = compute(*leaves, *masks)
        sum((one * weight).sum() for one, weight in zip(found, weights)).backward()
        results.append([*found, *(leaf.grad for leaf in leaves)])
    close = 1e-13 if dtype == torch.float64 else 2e-6
    for wanted, found in zip(*results):
        torch.testing.assert_close(found, wanted, rtol=close, atol=close)


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=["images", "captions", "both"])
def test_gradcheck_of_one_side_and_of_both(small_tiles, wanted):
    sides = [tokens(3, 3), tokens(5, 4, seed=1)]
    leaves = [side.requires_grad_(index in wanted) for index, side in enumerate(sides)]
    masks = ragged(3, 3), ragged(5, 4)
    assert torch.autograd.gradcheck(lambda *x: token_wise_similarity(*x, *masks), leaves)


def test_one_matrix_alone_has_its_own_gradient():
    """The other one's is then none, or zeros."""
    for which in (0, 1):
        grads = []
        for compute in (four_dimensional, token_wise_similarity):
            leaves = [tokens(4, 3).requires_grad_(), tokens(6, 2, seed=1).requires_grad_()]
            compute(*leaves)[which].pow(2).sum().backward()
            grads.append([leaf.grad for leaf in leaves])
        for wanted, found in zip(*grads):
            torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("filled", [math.nan, math.inf, -1e9, 1e9])
def test_what_padding_holds_changes_neither_values_nor_gradients(filled):
    mask = ragged(6, 4)
    results = []
    for fill in (0.0, filled):
        image = tokens(5, 3).requires_grad_()
        text = tokens(6, 4, seed=1).masked_fill(~mask[..., None], fill).requires_grad_()
        found = token_wise_similarity(image, text, None, mask)
        (found[0].sum() + found[1].pow(2).sum()).backward()
        assert text.grad[~mask].count_nonzero() == 0
        results.append([*found, image.grad, text.grad])
    for wanted, found in zip(*results):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_padding_never_beats_a_match_below_zero():
    """A mask that multiplies would make the padded token's product 0, which is more than -1."""
    image = torch.tensor([[[1.0, 0.0]]])
    text = torch.tensor([[[-1.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, False]])
    assert token_wise_similarity(image, text, None, mask)[0].item() == -1
    assert token_wise_similarity(image, text, None, mask, padding="zero")[0].item() == 0


def test_of_equally_good_matches_one_gets_the_gradient():
    image = torch.tensor([[[1.0, 0.0]]]).requires_grad_()
    text = torch.tensor([[[0.6, 0.8], [0.6, 0.8], [0.0, 1.0]]]).requires_grad_()
    token_wise_similarity(image, text)[0].sum().backward()
    assert sorted(text.grad[0].tolist()) == [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    torch.testing.assert_close(image.grad[0, 0], text.detach()[0, 0])


def test_no_tensor_of_all_products_is_made_forward_or_backward(monkeypatch):
    """The largest one is an input, a gradient, a matrix of similarities or a tile."""
    monkeypatch.setattr(token_tiles, "IMAGE_TOKENS", 32)
    monkeypatch.setattr(token_tiles, "TEXT_TOKENS", 64)
    sizes = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.extend(
                t.untyped_storage().nbytes() // 4 for t in (found,) if isinstance(t, Tensor)
            )
            return found

    sides = [tokens(48, 8, seed=seed, dtype=torch.float32).requires_grad_() for seed in (0, 1)]
    with Watch():
        forth, back = token_wise_similarity(*sides)
        (forth.sum() + back.sum()).backward()
    assert len(sizes) > 100
    assert max(sizes) <= max(32 * 64, 48 * 48, 48 * 8 * 3) < 48 * 48 * 8 * 8 / 50


@pytest.mark.parametrize("length", [256, 257, 300])
def test_places_beyond_a_byte_are_kept_too(length):
    image = torch.zeros(1, length, 2)
    image[0, -1, 0] = 1.0
    leaf = image.requires_grad_()
    token_wise_similarity(leaf, torch.tensor([[[1.0, 0.0]]]))[1].sum().backward()
    assert leaf.grad.nonzero().tolist() == [[0, length - 1, 0]]


def test_half_precision_is_widened_also_under_autocast():
    sides = [tokens(4, 3, dtype=torch.bfloat16), tokens(4, 5, seed=1, dtype=torch.bfloat16)]
    wanted = token_wise_similarity(*(side.float() for side in sides))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = [side.clone().requires_grad_() for side in sides]
        found = token_wise_similarity(*leaves)
        sum(one.sum() for one in found).backward()
    for one, other in zip(found, wanted):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert leaves[0].grad.dtype == torch.bfloat16


def test_nan_tokens_give_nan_and_no_crash():
    image = tokens(2, 3)
    image[1, 2] = math.nan
    image.requires_grad_()
    forth, back = token_wise_similarity(image, tokens(2, 2, seed=1))
    (forth.sum() + back.sum()).backward()
    assert forth.isnan().tolist() == back.isnan().tolist() == [[False, False], [True, True]]


def test_a_second_derivative_is_refused():
    image = tokens(2, 3).requires_grad_()
    value = token_wise_similarity(image, tokens(2, 2, seed=1))[0].sum()
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(value, image, create_graph=True)


# -- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_items_of_one_token_have_the_loss_of_embeddings(reduction, smoothing):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    results = []
    for loss in (InfoNCELoss(**options, tiled="never"), TokenWiseLoss(**options)):
        leaves = [tokens(7, 1, seed=seed).requires_grad_() for seed in (0, 1)]
        scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
        of = leaves if isinstance(loss, TokenWiseLoss) else [leaf[:, 0] for leaf in leaves]
        value = loss(*of, group=GROUP, scale=scale)
        results.append([value, *torch.autograd.grad(value, [*leaves, scale])])
    for wanted, found in zip(*results):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_loss_is_cross_entropy_of_images_by_s_and_of_captions_by_t():
    image, text, masks = tokens(7, 5), tokens(7, 4, seed=1), (ragged(7, 5), ragged(7, 4))
    forth, back = (m.tolist() for m in four_dimensional(image, text, *masks))
    ids, total = GROUP.tolist(), 0.0
    for matrix in (forth, [list(row) for row in zip(*back)]):
        for i, row in enumerate(matrix):
            partition = math.log(sum(math.exp(3.0 * s) for s in row))
            right = [3.0 * s - partition for s, other in zip(row, ids) if other == ids[i]]
            total -= sum(right) / len(right) / 7
    found = TokenWiseLoss()(image, text, *masks, group=GROUP, scale=3.0)
    assert found.item() == pytest.approx(total / 2, rel=1e-12)
    half = (one.bfloat16() for one in (image, text))
    assert TokenWiseLoss()(*half, *masks, group=GROUP, scale=3.0).dtype == torch.float32


# -- refusals -----------------------------------------------------------------------------------

IMAGE, TEXT = tokens(2, 3), tokens(2, 4, seed=1)
HOLLOW = torch.tensor([[True, False, True, True], [False] * 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGE, TEXT, None, HOLLOW), "text 1 of the batch has no token"),
        ((IMAGE, TEXT, HOLLOW[:, 1:]), "image 1 of the batch has no token"),
        ((IMAGE, TEXT[:, :0]), "text 0 of the batch has no token"),
        ((IMAGE, TEXT, None, HOLLOW[:, 1:]), r"text_mask must be \(2, 4\) booleans"),
        ((IMAGE, TEXT, None, HOLLOW.float()), "true on real tokens, got .*float32"),
        ((IMAGE[:, 0], TEXT), r"image must be \(batch, tokens, dim\) of floats, got \(2, 3\)"),
        ((IMAGE, TEXT.long()), "of floats, got .*int64"),
        ((IMAGE[..., :2], TEXT), "tokens of one width"),
    ],
)
def test_impossible_tokens_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        token_wise_similarity(*arguments)
    with pytest.raises(ValueError, match=message):
        TokenWiseLoss()(*arguments, group=torch.arange(len(arguments[0])), scale=1.0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGE[:1], TEXT), {}, "one row a pair"),
        ((IMAGE, TEXT), {"group": torch.arange(3)}, r"group \(3,\) must have one row a pair"),
        ((IMAGE[:0], TEXT[:0]), {"group": torch.arange(0)}, "a batch without rows has no loss"),
        ((IMAGE, TEXT), {"scale": torch.ones(2)}, r"one number for all rows, got \(2,\)"),
    ],
)
def test_impossible_batches_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        TokenWiseLoss()(*arguments, **{"group": torch.arange(2), "scale": 1.0, **options})


def test_unknown_options_are_refused():
    for options in ({"padding": "none"}, {"reduction": "max"}, {"label_smoothing": 1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TokenWiseLoss(**options)
    with pytest.raises(ValueError, match="padding must be one of excluded, zero"):
        token_wise_similarity(IMAGE, TEXT, padding="none")
