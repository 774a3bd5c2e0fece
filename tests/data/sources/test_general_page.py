"""docs/data/general.md: its examples run on the files that it shows, and its messages are real."""

import re
import shlex
from pathlib import Path

import pytest
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest

PAGE = (Path(__file__).resolve().parents[3] / "docs/data/general.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'```text title="([^"]+)"\n(.*?)```', PAGE, re.DOTALL))
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """The files of the page, and a folder of pictures for its last examples."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("boats/photos/harbour/1.jpg", "boats/photos/harbour/2.jpg",
                 "boats/photos/harbour/3.jpg", "photos/train/a.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "photos" / "train" / "a.txt").write_text("A tree.\n")
    return tmp_path


def test_the_page_has_files_and_commands():
    assert len(FILES) == 8
    assert len(COMMANDS) == 11


@pytest.mark.parametrize(
    "words",
    [c for c in COMMANDS if c[2] not in ("folder", "hf") and c[1] == "import"],
    ids=" ".join,
)
def test_each_example_gives_a_manifest_without_faults(there, words):
    assert main(words) == 0
    manifest = words[words.index("--out") + 1]
    report = check_manifest(manifest, images="--images" in words)
    assert report.faults == 0
    assert report.captions > 1


def test_the_examples_on_a_folder_run(there):
    (there / "photos" / "train" / "a.en.txt").write_text("A tree.\n")
    split_by_folder, in_one = (c for c in COMMANDS if c[2] == "folder")
    assert main(in_one) == 0
    (there / "photos" / "train" / "a.txt").unlink()
    assert main(split_by_folder) == 0


def test_the_example_on_a_data_set_runs(there):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": picture(), "path": None}], "caption": ["A tree."]}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"validation": part}).save_to_disk("saved")
    (words,) = (c for c in COMMANDS if c[2] == "hf")
    assert main(words) == 0
    assert check_manifest("saved.jsonl").splits == {"val": 1}


def test_the_messages_of_the_page_are_real(there, capsys):
    words = COMMANDS[0]
    table = there / "boats" / "captions.csv"
    table.write_text(FILES["boats/captions.csv"].replace("Two gulls.", "Two gulls, white."))
    assert main(words) == 2
    first = capsys.readouterr().err.partition("boats/")[2].strip()
    assert first in PAGE
    table.write_text(FILES["boats/captions.csv"])
    assert main([word.replace("=german", "=germann") for word in words]) == 2
    assert capsys.readouterr().err.partition("boats/")[2].strip() in PAGE
