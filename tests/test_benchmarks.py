"""The frame of the benchmarks: memory and time are what they say, the page is what the figures give."""

from __future__ import annotations

import inspect
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from xlcm.training.workers import forget_processes

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import gpu, measure, run  # noqa: E402

FRAME = {"measure", "run", "photos", "__init__"}
needs_peak = pytest.mark.skipif(not measure.peak_is_known(), reason="this system tells no peak")


@needs_peak
@pytest.mark.parametrize("calls", ["timed", "own"])
def test_memory_is_that_of_a_known_allocation(calls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "QUICK", 0.0 if calls == "timed" else 1e9)
    ways = {mb: (lambda n=mb: torch.ones(n << 18)) for mb in (16, 64)}
    found = measure.compare({str(mb): way for mb, way in ways.items()}, rounds=2)
    for mb in ways:
        assert found[str(mb)]["peak_mb"] == pytest.approx(mb, abs=4)


def test_ways_run_in_turn_and_the_first_round_is_not_counted() -> None:
    ran: list[str] = []

    def way(name: str, seconds: float) -> None:
        time.sleep(seconds if ran.count(name) else 0.2)  # the first call is slow
        ran.append(name)

    found = measure.compare(
        {
            "a": lambda: way("a", 0.01),
            "b": lambda: way("b", 0.02),
            "slow": lambda: way("slow", 0.0),
        },
        rounds=3,
        memory=False,
        once=["slow"],
    )
    assert ran == ["a", "b", "a", "b", "slow", "a", "b", "a", "b"]
    assert [found[name]["rounds"] for name in found] == [3, 3, 1]
    assert 10 <= found["a"]["wall_ms"] < 100 < found["slow"]["wall_ms"]
    assert found["a"]["cpu_ms"] < 10  # sleeping costs none
    assert "peak_mb" not in found["a"]


def test_ratios_and_table_are_to_the_base() -> None:
    found = {
        "ours": {"cpu_ms": 10.0, "wall_ms": 20.0, "peak_mb": 1.0, "rounds": 3},
        "peer": {"cpu_ms": 40.0, "wall_ms": 40.0, "peak_mb": 10.0, "rounds": 1},
    }
    assert measure.ratios(found, "peer")["ours"] == {"cpu": 0.25, "wall": 0.5, "memory": 0.1}
    table = measure.markdown(found, "peer").splitlines()
    assert table[2] == "| ours | 10 | 20 | 1.0 | 0.25 | 0.10 |"
    assert table[3].startswith("| peer *(once)* |")


def test_the_pages_equal_what_the_figures_give() -> None:
    pages = run.pages()
    assert {path.name for path in pages} >= {run.PAGE, "encoding.md"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, "run `python -m benchmarks.run page`"


MACHINE = {
    "cpu": "Some CPU", "cores": 4, "threads": 1, "python": "3.12.1", "torch": "2.14.1",
    "versions": {"peer": "1.0"},
}  # fmt: skip
STEPS = [
    {"way": way, "batch": batch, "micro_batch": 512, "pairs_per_s": pairs, "mfu": mfu,
     "ms": 1.0, "peak_gb": 20.26}
    for way, batch, pairs, mfu in [
        ("xlcm", 1024, 3000.0, 0.47), ("open_clip", 1024, 2500.0, 0.39),
        ("xlcm", 4096, 2700.0, 0.44), ("open_clip", 4096, 2600.0, 0.42),
    ]
]  # fmt: skip
FIGURES: dict[str, Any] = {
    "gpu": {
        "device": "NVIDIA H200", "peak": "the maker's 989 TFLOP/s of H200", "compiled": True,
        "precision": "bf16", "gflop_per_pair": 138.42, "steps": STEPS,
        "loss": {"rows": 32_768, "width": 512, "ways": {"xlcm": {"ms": 9.0, "peak_gb": 0.31}}},
    },
    "engines": {
        "speed": {
            "captions": {
                "ways": {"float32": {"cpu_ms": 30.0, "wall_ms": 30.0},
                         "onnx-int8": {"cpu_ms": 12.0, "wall_ms": 12.0}},
                "cosine": {"float32": 1.0, "onnx-int8": 0.9999},
            },
            "pictures": {
                "ways": {"float32": {"cpu_ms": 30.0, "wall_ms": 30.0},
                         "onnx-int8": {"cpu_ms": 20.0, "wall_ms": 20.0}},
                "cosine": {"float32": 1.0, "onnx-int8": 0.9998},
            },
            "bf16_instructions": True,
        },
        "recall": {
            name: {"text_to_image": 13.4 - off, "image_to_text": 16.3 - off, "queries": 9,
                   "cosine": 1 - off / 100}
            for name, off in (("float32", 0.0), ("onnx-int8", 0.1))
        },
    },
}  # fmt: skip


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up figures of two benchmarks, and a page that shows some of them."""
    folder = tmp_path / "docs" / "benchmarks"
    folder.mkdir(parents=True)
    for name, found in FIGURES.items():
        told = {"benchmark": name, "date": "2031-02-03", "machine": MACHINE, "missing": []}
        (folder / f"{name}.json").write_text(json.dumps(told | {"found": found}))
    page = "Above.\n\n<!-- figures: engines -->\nold\n<!-- end -->\n\nBelow."
    (tmp_path / "docs" / "encoding.md").write_text(page)
    monkeypatch.setattr(run, "FOLDER", folder)
    return folder


def test_figures_of_a_gpu_come_to_the_page(invented: Path) -> None:
    page = run.pages()[invented / run.PAGE]
    assert "On NVIDIA H200: 138.4 GFLOP a pair, towers in bf16, compiled by torch." in page
    assert "| 1,024 | 512 | xlcm | 3,000 | 47.0 | 20.3 | 1.20 |" in page
    assert "| 4,096 | 512 | open_clip | 2,600 | 42.0 | 20.3 | 1.00 |" in page
    assert "| xlcm | 9 | 0.3 |" in page
    assert "(MFU) | at least 45 % | 47.0 % / 44.0 % | no |" in page
    assert "| at least 1.1 x open_clip | 1.20 x / 1.04 x | no |" in page
    assert "2031-02-03, Some CPU" in page


def test_the_page_begins_with_what_was_missed_and_what_has_no_figures(invented: Path) -> None:
    page = run.pages()[invented / run.PAGE]
    start = page.index("## At a glance")
    rows = [line for line in page[start:].splitlines() if line.startswith("| [")]
    (row,) = [line for line in rows if f"[{run.question(run.load('gpu'))}]" in line]
    missed = row.split(" | ")[2]
    assert "(MFU)" in missed
    assert "at least" not in missed
    assert " of " in row.split(" | ")[1]
    without = page[start:].partition("Without figures so far: ")[2].partition("\n")[0]
    assert "`features`" in without
    assert "`gpu`" not in without


def test_a_page_shows_the_figures_that_it_asks_for(invented: Path) -> None:
    file = invented.parent / "encoding.md"
    text = run.pages()[file]
    assert text.startswith("Above.\n\n<!-- figures: engines -->\n| way |")
    assert text.endswith("`.\n<!-- end -->\n\nBelow.")
    assert "| float32 | 1.00 | 1.00 | 1.00000 | 13.40 | 16.30 |" in text
    assert "| `onnx-int8` | 2.50 | 1.50 | 0.99900 | 13.30 | 16.20 |" in text
    assert "2031-02-03, Some CPU" in text
    assert run.with_figures(text) == text
    (invented / "engines.json").unlink()
    assert "Not measured yet: `python -m benchmarks.run engines`." in run.pages()[file]


def test_the_benchmark_of_a_gpu_runs_in_small_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_processes()
    monkeypatch.setattr(gpu, "installed", lambda distribution: False)
    monkeypatch.setattr(gpu, "theirs", None)
    found = json.loads(json.dumps(gpu.measure(small=True)))
    forget_processes()
    [step] = found["steps"]
    assert step["way"] == "xlcm"
    assert step["micro_batch"] < step["batch"]
    assert step["mfu"] > 0
    assert set(found["loss"]["ways"]) == {"xlcm", "plain"}
    assert gpu.table(found).count("| xlcm |") == 2
    assert set(gpu.reached(found)) < set(gpu.TARGETS)


def test_the_step_of_open_clip_trains_on_a_cpu_whole_and_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("open_clip", exc_type=ImportError)
    forget_processes()
    made: list[torch.optim.Optimizer] = []
    real = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim,
        "AdamW",
        lambda *given, **options: made.append(real(*given, **options)) or made[0],
    )
    device = torch.device("cpu")
    step = gpu.theirs("small", device, Accelerator(cpu=True), compiled=False)
    trained = [one for group in made[0].param_groups for one in group["params"]]
    for micro_batch in (4, 2):
        before = [one.detach().clone() for one in trained]
        step(*gpu.rows_of("small", 4, device), micro_batch)
        assert sum(not torch.equal(a, b) for a, b in zip(before, trained)) > len(trained) / 2
    forget_processes()


def test_without_a_gpu_its_benchmark_is_left_out_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match=r"torch sees no CUDA device here.*--small tries"):
        gpu.main()
    ran: list[str] = []
    monkeypatch.setattr(run, "names", lambda: ["features", "gpu"])
    monkeypatch.setattr(run, "measure_and_write", lambda name, *, small: ran.append(name))
    monkeypatch.setattr(sys, "argv", ["run", "all"])
    assert run.main() == 0
    assert ran == ["features"]
    assert "gpu: left out, torch sees no CUDA device here" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run", "gpu"])
    assert run.main() == 1


def test_every_module_is_a_benchmark_with_the_interface() -> None:
    modules = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}
    assert modules - FRAME <= set(run.names())
    for name in run.names():
        module = run.load(name)
        assert run.question(module), f"benchmarks/{name}.py: the docstring begins with the question"
        assert isinstance(module.PEERS, tuple)
        assert all(isinstance(text, str) for pair in module.TARGETS.items() for text in pair)
        assert inspect.signature(module.measure).parameters["small"].kind == 3, "keyword only"
        assert callable(module.table)


@pytest.mark.parametrize("name", ["evaluation"])
def test_a_benchmark_runs_without_its_peers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = run.load(name)
    monkeypatch.setattr(module, "installed", lambda distribution: False)
    found = json.loads(json.dumps(module.measure(small=True)))
    assert module.table(found).count("| ") > 10
    assert set(module.reached(found)) <= set(module.TARGETS)


def test_targets_say_whether_they_were_reached() -> None:
    module = SimpleNamespace(
        TARGETS={"time": "at most 2", "memory": "at most 1", "size": "any"},
        reached=lambda found: {"time": ("1.5", True), "memory": (f"{found['m']}", False)},
    )
    assert run.targets(module, {"m": 3}).splitlines()[2:] == [
        "| time | at most 2 | 1.5 | yes |",
        "| memory | at most 1 | 3 | no |",
        "| size | any |  |  |",
    ]


def test_small_runs_write_nothing_and_others_write_figures_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SimpleNamespace(
        __doc__="How fast?\n\nMore.", PEERS=("no-such-peer",), TARGETS={"all": "some"},
        measure=lambda *, small: {"ms": 1 if small else 2},
        table=lambda found: f"it takes {found['ms']} ms",
    )  # fmt: skip
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "load", lambda name: module)
    monkeypatch.setattr(run, "names", lambda: ["speed"])
    run.measure_and_write("speed", small=True)
    assert not list(tmp_path.iterdir())
    shown = capsys.readouterr()
    assert "it takes 1 ms" in shown.out
    assert "no-such-peer" in shown.err
    run.measure_and_write("speed", small=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.md", "speed.json"]
    text = (tmp_path / "index.md").read_text()
    assert "## How fast?" in text
    assert "it takes 2 ms" in text
    assert "left out: no-such-peer" in text
    assert json.loads((tmp_path / "speed.json").read_text())["found"] == {"ms": 2}


@pytest.mark.parametrize("micro_batch", [8, 4])
def test_towers_of_the_step_on_a_gpu_are_in_half_precision_whole_and_in_pieces(
    micro_batch: int,
) -> None:
    forget_processes()
    accelerator, device = Accelerator(cpu=True, mixed_precision="bf16"), torch.device("cpu")
    method, step = gpu.ours("small", device, accelerator)
    seen = []
    for head in (method.retriever.image_head, method.retriever.text_head):
        head.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    step(*gpu.rows_of("small", 8, device), micro_batch)
    forget_processes()
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == (2 if micro_batch == 8 else 6)  # one piece is encoded once
