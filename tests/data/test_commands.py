import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from xlcm.cli import COMMANDS, main
from xlcm.data.faults import KINDS, WARNINGS
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.stats import manifest_stats, quantiles
from xlcm.types import Caption, Item

REPOSITORY = Path(__file__).resolve().parents[2]
NOUNS = ["dog", "cat", "bird", "horse", "child", "woman", "man", "boy", "girl", "ball"]


@pytest.fixture
def manifest(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "m.jsonl"
    with ManifestWriter(path) as writer:
        for i in range(40):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
            text = f"A {NOUNS[i % 10]} sees the {NOUNS[i // 4]} near house number {i}."
            captions = [
                Caption(f"{i}#0", "en", text),
                Caption(f"{i}#1", "de", f"Haus {i}", "mt", f"{i}#0"),
            ]
            split = "train" if i < 30 else "test"
            shown = captions if i else ()
            writer.write(Item(f"{i}", split, tuple(shown), image=f"{i}.png"))
    return path


def add_bad_line(manifest: Path) -> None:
    with open(manifest, "a", encoding="utf-8") as file:
        file.write('{"id": "x"}\n')


def test_check_says_zero_on_warnings_and_one_on_faults(manifest, tmp_path, capsys):
    assert main(["data", "check", str(manifest), "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "40 items (30 train, 10 test), 78 captions" in shown
    assert "0 faults, 1 warnings" in shown  # the item without captions
    add_bad_line(manifest)
    out = tmp_path / "report.json"
    assert main(["data", "check", str(manifest), "--workers", "1", "--json", str(out)]) == 1
    assert f"{manifest}:41: key 'split' is missing" in re.sub(
        r"\s+│?[\s│]*", " ", capsys.readouterr().out
    )
    report = json.loads(out.read_text())
    assert (report["faults"], report["findings"]["bad_line"]["count"]) == (1, 1)


def test_check_counts_pictures_only_when_they_are_opened(manifest, tmp_path):
    (tmp_path / "3.png").write_bytes(b"")
    assert main(["data", "check", str(manifest), "--workers", "1"]) == 1
    assert main(["data", "check", str(manifest), "--no-images"]) == 0


def test_a_tokenizer_is_trained_and_the_check_counts_what_it_cuts(manifest, tmp_path, capsys):
    folder = tmp_path / "tokenizer"
    train = ["data", "train-tokenizer", str(manifest), "--out", str(folder), "--langs", "en"]
    assert main([*train, "--vocab-size", "320", "--kind", "bpe"]) == 0
    assert "from 29 captions" in capsys.readouterr().out
    out = tmp_path / "report.json"
    model = str(folder / "sentencepiece.model")
    check = [
        "data",
        "check",
        str(manifest),
        "--no-images",
        "--tokenizer",
        model,
        "--json",
        str(out),
    ]
    assert main([*check, "--max-tokens", "5"]) == 0
    cut = json.loads(out.read_text())["cut"]
    assert (cut["en"]["captions"], cut["en"]["cut"]) == (39, 39)
    assert "39" in capsys.readouterr().out
    assert main([*check, "--max-tokens", "400"]) == 0
    assert json.loads(out.read_text())["cut"]["en"]["cut"] == 0


def test_a_vocabulary_too_small_is_an_error_with_a_way_out(manifest, tmp_path, capsys):
    train = ["data", "train-tokenizer", str(manifest), "--out", str(tmp_path), "--vocab-size", "10"]
    assert main(train) == 2
    assert "raise vocab_size" in capsys.readouterr().err
    assert main([*train, "--langs", "jp"]) == 2
    assert "did you mean 'ja'" in capsys.readouterr().err


def test_stats_count_by_split_language_and_origin(manifest, tmp_path, capsys):
    out = tmp_path / "stats.json"
    assert main(["data", "stats", str(manifest), "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "29 (29)" in shown
    assert "German" in shown
    stats = json.loads(out.read_text())
    assert stats["items"] == {"train": 30, "test": 10}
    assert stats["without_captions"] == {"train": 1}
    assert {"split": "test", "lang": "de", "origin": "mt", "captions": 10, "items": 10} in stats[
        "captions"
    ]
    assert stats["characters"]["de"] == {"min": 6, "p50": 7, "p95": 7, "p99": 7, "max": 7}
    assert stats["words"]["de"] == {"min": 2, "p50": 2, "p95": 2, "p99": 2, "max": 2}


def test_quantiles_are_lengths_that_occur():
    assert quantiles(Counter({1: 50, 5: 45, 9: 4, 100: 1})) == {
        "min": 1, "p50": 1, "p95": 5, "p99": 9, "max": 100,
    }  # fmt: skip
    assert set(quantiles(Counter({3: 1})).values()) == {3}


def test_stats_stop_at_a_bad_line(manifest, capsys):
    add_bad_line(manifest)
    with pytest.raises(DataError, match=r"m\.jsonl:41: "):
        manifest_stats(manifest)
    assert main(["data", "stats", str(manifest)]) == 2
    assert "m.jsonl:41: key 'split' is missing" in capsys.readouterr().err


def test_input_at_fault_gives_a_message_and_our_own_bugs_a_traceback(manifest, capsys, monkeypatch):
    assert main(["data", "check", str(manifest.parent / "n.jsonl")]) == 2
    assert "no manifest" in capsys.readouterr().err
    monkeypatch.setattr("xlcm.data.check.check_manifest", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        main(["data", "check", str(manifest)])


def test_unknown_commands_end_with_two():
    for argv in ([], ["dta"], ["data"], ["data", "chek"], ["data", "import", "nothing"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_group_of_commands_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: xlcm {name}" in capsys.readouterr().out


def test_help_loads_no_torch_and_is_fast():
    code = (
        "import sys\nfrom xlcm.cli import main\n"
        "try:\n    main({argv!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'PIL', 'numpy', 'pydantic') if m in sys.modules])\n"
    )
    start = time.monotonic()
    run = [sys.executable, "-c", code.format(argv=["--help"])]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert time.monotonic() - start < 5  # 0.05 s on a machine at rest
    assert done.stdout.endswith("[]\n")
    run[-1] = code.format(argv=["data", "check", "--help"])
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "'torch'" not in done.stdout


PAGE = REPOSITORY / "docs" / "data" / "manifest.md"


def test_the_page_explains_every_kind_of_fault_and_no_other():
    explained = dict(
        re.findall(r"^\| `([a-z0-9_]+)` \| (fault|warning) \|", PAGE.read_text(), re.M)
    )
    assert explained == {kind: "warning" if kind in WARNINGS else "fault" for kind in KINDS}


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {})
    shown = capsys.readouterr().out
    assert "data/dogs.jsonl:1 17 1" in shown
    assert "tensor([1., 1., 1., 1.]) True" in shown
    assert "image_missing image 'images/17.jpg': no such file" in shown
