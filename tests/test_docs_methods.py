"""The pages of methods and losses say what the code does, and their pictures are drawn by it.

`python tests/test_docs_methods.py` writes the option tables and the pictures anew.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
import torch.nn.functional as F
import yaml
from test_docs_pages import blocks, marked, options_table

import xlcm.losses
from xlcm.config import build, merge, signature_schema
from xlcm.losses.adversarial import discriminator_loss, fooling_loss
from xlcm.losses.feature_distillation import FeatureDistillationLoss
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.optimal_transport import sinkhorn, transport_distance
from xlcm.losses.relation_distillation import RelationDistillationLoss
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss
from xlcm.losses.token_wise import TokenWiseLoss
from xlcm.losses.triplet import TripletLoss
from xlcm.losses.word_alignment import WordAlignmentLoss
from xlcm.methods.nrccr import NRCCR
from xlcm.registry import methods
from xlcm.schema import argument_docs, export
from xlcm.training.stages import lay_out, read_stages

REPOSITORY = Path(__file__).resolve().parents[1]
LOSSES = REPOSITORY / "docs/losses.md"
PAGES = {
    name: REPOSITORY / f"docs/methods/{page}.md"
    for name, page in {
        "nrccr": "nrccr", "c2kd": "c2kd", "translate_train": "c2kd", "cl2cm": "cl2cm",
    }.items()
}  # fmt: skip
METHOD_PAGES = sorted(set(PAGES.values()))
TABLED_LOSSES = [
    SimilarityDistillationLoss, FeatureDistillationLoss, RelationDistillationLoss, WordAlignmentLoss,
    TokenWiseLoss,
]  # fmt: skip


# -- tables of options ---------------------------------------------------------------------------


def method_table(name: str) -> str:
    definition = export("train")["$defs"][f"method.{name}"]
    definition["properties"].pop("name")
    return options_table(name, {name: definition})


def loss_table(loss: type) -> str:
    definition = signature_schema(loss).model_json_schema()
    described = argument_docs(inspect.cleandoc(loss.__doc__ or ""))
    for option, node in definition["properties"].items():
        node["description"] = described[option]
    return options_table(loss.__name__, {loss.__name__: definition})


TABLES = {
    **{name: (page, lambda name=name: method_table(name)) for name, page in PAGES.items()},
    **{
        loss.__name__: (LOSSES, lambda loss=loss: loss_table(loss)) for loss in TABLED_LOSSES
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_every_option_with_its_default_and_meaning(name):
    page, table = TABLES[name]
    found = marked(page.read_text(encoding="utf-8"), f"options: {name}")
    assert found == table(), f"run: python {Path(__file__).relative_to(REPOSITORY)}"
    assert found.count("\n") > 3


# -- examples ------------------------------------------------------------------------------------

BASE = {
    "model": {
        "name": "dual_encoder",
        "image": {"name": "timm", "backbone": "test_resnet", "image_size": 64},
        "text": {"name": "bag", "tokenizer": {"name": "sentencepiece", "vocab_size": 800}},
    },
    "data": {
        "train": {"name": "scenes", "size": 100},
        "views": {"source": {"langs": ["en"]}, "target": {"langs": ["de"], "of": "source"}},
    },
    "run": {"epochs": 1},
}


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_examples_of_the_page_are_configs(page):
    examples = blocks(page, "yaml")
    assert len(examples) >= 2
    for example in examples:
        tree = yaml.safe_load(example)
        if "method" not in tree:  # a part of the evaluation
            tree["method"] = page.stem
        for config in lay_out(merge(BASE, tree)):
            used = methods.get(config.method["name"]).views
            assert set(tree.get("data", {}).get("views", {})) <= set(used), example


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_commands_of_the_page_name_configs_that_load(page):
    commands = [
        shlex.split(line) for block in blocks(page, "bash") for line in block.splitlines()
    ]  # fmt: skip
    assert len(commands) >= 3
    for words in commands:
        recipe = next(word for word in words if word.startswith("recipes/"))
        config = next(word for word in words if word.startswith("configs/"))
        assert (REPOSITORY / recipe).is_file()
        found = read_stages(REPOSITORY / config)
        assert found[-1].method["name"] == page.stem


def test_published_settings_of_c2kd_are_those_of_its_configs():
    page = PAGES["c2kd"].read_text(encoding="utf-8")
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines() if line.startswith("|")
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in table if len(row) == 5}
    for column, name in enumerate(re.findall(r"`([^`]+\.yaml)`", " ".join(rows["config"]))):
        *teachers, student = read_stages(REPOSITORY / name)
        wide, taus, shares = (
            [float(x.replace(",", "")) for x in re.findall(r"[\d.,]+", rows[key][column])]
            for key in ("width", r"$\tau$ of student; of teachers", r"$\lambda$; $T$")
        )
        assert wide == [student.model["width"]]
        assert taus == [student.model["temperature"], teachers[0].model["temperature"]]
        assert shares == [student.method["contrastive_share"], student.method["temperature"]]
        assert rows["`pool` (what is really done)"][column] == f"`{student.method['pool']}`"
        assert float(rows["epochs"][column]) == student.run.epochs
        assert float(rows["rate"][column].split()[0]) == student.optim.lr
        assert int(rows["batch"][column]) == student.run.global_batch
        width = student.model["image"]["feature_width"]
        assert rows["frame features"][column].endswith(f"{width:,}")


def test_published_total_of_nrccr_has_the_weights_of_the_code():
    page = PAGES["nrccr"].read_text(encoding="utf-8")
    total = re.search(r"L = \\ell\(v, s\) \+ (.*?)\$\$", page, re.DOTALL)
    assert total
    default = {
        name: parameter.default for name, parameter in inspect.signature(NRCCR).parameters.items()
    }
    order = ("target", "similarity", "feature", "cycle", "adversarial")
    assert [float(x) for x in re.findall(r"0\.\d+", total[1])] == [
        default[f"{name}_weight"] for name in order
    ]
    assert default["source_weight"] == 1.0


# -- what is where -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_symbols_of_the_page_are_in_the_files_beside_them(page):
    rows = re.findall(
        r"^\|[^|]*\| `(xlcm/[\w/]+)\.py` \| (`.*`) \|$", page.read_text(encoding="utf-8"), re.M
    )
    assert len(rows) >= 7
    for path, symbols in rows:
        module = importlib.import_module(path.replace("/", "."))
        for symbol in re.findall(r"`([\w.]+)`", symbols):
            first, *rest = symbol.split(".")
            found: Any = getattr(module, first)
            assert found.__module__ == module.__name__, f"{symbol} is only imported in {path}"
            for name in rest:
                fields = getattr(found, "model_fields", {})
                assert name in fields or hasattr(found, name), symbol


@pytest.mark.parametrize(
    ("name", "options"),
    [("nrccr", {"teacher_weight": 1.0}), ("cl2cm", {"text_weight": 1.0})],
)
def test_all_terms_of_the_method_are_named_on_its_page(name, options):
    text = small_models.refined() if name == "nrccr" else None
    retriever = small_models.model(text) if text is not None else small_models.model()
    method = build(methods, {"name": name, **options}, retriever)
    page = PAGES[name].read_text(encoding="utf-8")
    losses = page.split("## The losses")[1].split("## Run")[0]
    for term in method.weights:
        assert f"`{term}`" in losses, term


# -- losses --------------------------------------------------------------------------------------


def test_every_loss_is_on_the_page():
    page = LOSSES.read_text(encoding="utf-8")
    helpers = {"base", "similarities"}
    for module in pkgutil.iter_modules(xlcm.losses.__path__):
        if module.name not in helpers | {"info_nce", "triplet"}:
            assert f"`xlcm/losses/{module.name}.py`" in page, module.name


def glance() -> dict[str, list[str]]:
    """Return the table at the top of the page: loss -> cells."""
    section = LOSSES.read_text(encoding="utf-8").split("## All at a glance")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}


def unit(rows: int = 6, width: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width), dim=-1).requires_grad_()


def _distil(text, image, teacher_text, teacher_image, **options):
    loss = SimilarityDistillationLoss(**options)
    return loss(text, image, loss.targets([(teacher_text, teacher_image)]))


def _pair(loss):
    return lambda image, text, scale: loss(image, text, group=torch.arange(len(image)), scale=scale)


def _biased(image, text, scale, bias):
    return SigmoidLoss()(image, text, group=torch.arange(len(image)), scale=scale, bias=bias)


def scale() -> torch.Tensor:
    return torch.tensor(5.0, requires_grad=True)


def _words(source, target):
    return WordAlignmentLoss(threshold=0.0)(source, None, target, None)


CALLS = {
    "InfoNCELoss": (_pair(InfoNCELoss()), ("image", "text", "scale")),
    "SigmoidLoss": (_biased, ("image", "text", "scale", "bias")),
    "TokenWiseLoss": (_pair(TokenWiseLoss()), ("image", "text", "scale")),
    "TripletLoss": (_pair(TripletLoss(margin=2.0)), ("image", "text", "scale")),
    "SimilarityDistillationLoss": (_distil, ("text", "image", "teacher_text", "teacher_image")),
    "FeatureDistillationLoss": (FeatureDistillationLoss(), ("student", "teacher")),
    "RelationDistillationLoss": (
        RelationDistillationLoss(), ("left", "right", "teacher_left", "teacher_right"),
    ),
    "WordAlignmentLoss": (_words, ("source", "target")),
    "transport_distance": (lambda plan, cost: transport_distance(plan, cost).sum(), ("plan", "cost")),
    "discriminator_loss": (discriminator_loss, ("real", "fake")),
    "fooling_loss": (fooling_loss, ("fake",)),
}  # fmt: skip


def _inputs(name: str, arguments: tuple[str, ...]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    if name == "transport_distance":
        cost = torch.rand(2, 3, 4, requires_grad=True)
        return [sinkhorn(cost), cost]
    if name == "TokenWiseLoss":
        return [*(torch.randn(4, n, 5, requires_grad=True) for n in (3, 2)), scale()]
    if name == "WordAlignmentLoss":
        return [torch.randn(2, n, 5, requires_grad=True) for n in (3, 4)]
    return [scale() if one in ("scale", "bias") else unit() for one in arguments]


def _with_gradient(call, inputs, arguments) -> set[str]:
    call(*inputs).backward()
    return {n for n, x in zip(arguments, inputs) if x.grad is not None and x.grad.abs().sum() > 0}


def test_the_table_of_losses_is_whole():
    assert list(glance()) == list(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_that_get_a_gradient_are_those_of_the_table(name):
    call, arguments = CALLS[name]
    said = glance()[name][0].split(";")[0]
    found = _with_gradient(call, _inputs(name, arguments), arguments)
    assert found == set(re.findall(r"`(\w+)`", said))


def test_the_options_that_change_who_gets_a_gradient_do_so():
    arguments = CALLS["SimilarityDistillationLoss"][1]
    free = lambda *inputs: _distil(*inputs, divergence="cross_entropy", detach_teacher=False)  # noqa: E731
    assert _with_gradient(free, _inputs("", arguments), arguments) == set(arguments)
    alone = FeatureDistillationLoss(detach_teacher=True)
    pair = ("student", "teacher")
    assert _with_gradient(alone, _inputs("", pair), pair) == {"student"}


def test_the_values_of_equal_vectors_and_the_greatest_ones_are_those_of_the_table():
    equal = F.normalize(torch.ones(6, 5), dim=1)
    log, margin = torch.tensor(6.0).log(), 0.2
    group = torch.arange(6)
    assert torch.allclose(InfoNCELoss()(equal, equal, group=group, scale=5.0), log)
    zero = SigmoidLoss()(equal, equal, group=group, scale=5.0, bias=torch.tensor(-5.0))
    assert torch.allclose(zero, 6 * torch.tensor(2.0).log())
    assert torch.allclose(TripletLoss()(equal, equal, group=group), torch.tensor(2 * margin))
    of = [equal] * 4
    assert torch.allclose(_distil(*of), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(_distil(*of, divergence="cross_entropy"), log)
    assert torch.allclose(RelationDistillationLoss()(*of), torch.tensor(0.0), atol=1e-6)
    apart = torch.tensor(2 / (4.0 * 5))
    assert torch.allclose(FeatureDistillationLoss()(equal, -equal), apart)
    assert torch.allclose(FeatureDistillationLoss(reduction="sum")(equal, -equal), apart * 5)
    widest = _distil(equal, equal, equal, -equal, divergence="smooth_l1")
    assert torch.allclose(widest, torch.tensor(1.5))
    words = torch.ones(2, 3, 5)
    distance = WordAlignmentLoss(word_loss="ot_distance")
    assert torch.allclose(distance(words, None, words, None), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(distance(words, None, -words, None), torch.tensor(2.0))
    zero = torch.zeros(6, 2)
    assert torch.allclose(discriminator_loss(zero, zero), torch.tensor(2.0).log())
    assert torch.allclose(fooling_loss(zero), torch.tensor(2.0).log())


def test_python_examples_of_the_page_run_one_after_the_other():
    examples = blocks(LOSSES, "python")
    assert len(examples) >= 5
    space: dict[str, Any] = {}
    for example in examples:
        assert "assert" in example
        exec(compile(example, str(LOSSES), "exec"), space)


# -- pictures and pages --------------------------------------------------------------------------


def drawn() -> dict[str, str]:
    space = runpy.run_path(str(REPOSITORY / "docs/images/methods.py"))
    return {name: draw().svg() for name, draw in space["PICTURES"].items()}


def test_the_pictures_are_those_that_the_script_draws():
    for name, svg in drawn().items():
        path = REPOSITORY / "docs/images" / name
        assert path.read_text(encoding="utf-8") == svg, f"run: python tests/{Path(__file__).name}"
        root = ElementTree.fromstring(svg)
        assert root[0].tag.endswith("title")
        assert f"(../images/{name})" in PAGES[path.stem].read_text(encoding="utf-8")


def test_every_method_has_a_page_in_the_navigation_and_on_the_start_page():
    shown = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    start = (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    for name in methods:
        page = {"translate_train": "c2kd"}.get(name, name)
        assert f"methods/{page}.md" in str(shown)
        assert f"methods/{page}.md" in start
        assert f"`xlcm/methods/{name}.py`" in (
            REPOSITORY / f"docs/methods/{page}.md"
        ).read_text(encoding="utf-8")  # fmt: skip


def rewrite() -> None:
    for name, (page, table) in TABLES.items():
        old, mark = page.read_text(encoding="utf-8"), f"<!-- options: {name} -->\n"
        page.write_text(
            old.replace(mark + marked(old, f"options: {name}"), mark + table()), "utf-8"
        )
    for name, svg in drawn().items():
        (REPOSITORY / "docs/images" / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
