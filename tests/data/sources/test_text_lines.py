import gzip
import json

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated

from xlcm.data.manifest import DataError
from xlcm.data.sources.text_lines import (
    find,
    find_all,
    iter_lines,
    read_json,
    read_jsonl,
    read_lines,
    tagged_line,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("eins\n\nzwei\u2028drei\x85\x0b\nvier".encode())
    return path


LINES = [(1, "eins"), (2, ""), (3, "zwei\u2028drei\x85\x0b"), (4, "vier")]


def test_lines_end_at_line_feeds_only_and_blank_ones_count(file):
    assert read_lines(file) == LINES


@pytest.mark.parametrize("change", [bom, crlf, lambda path: bom(crlf(path))])
def test_windows_files_read_the_same(file, change):
    assert read_lines(change(file)) == LINES


def test_a_gzipped_file_reads_the_same_whatever_it_is_called(file, tmp_path):
    assert read_lines(packed(file)) == LINES
    named_plain = tmp_path / "b.txt"
    named_plain.write_bytes((tmp_path / "a.txt.gz").read_bytes())
    assert read_lines(named_plain) == LINES


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "e").write_bytes(b"")
    assert read_lines(tmp_path / "e") == []


def test_a_wrong_encoding_is_named_with_line_and_way_out(file):
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8 at byte \d+ .*0xe9.* `iconv -f wind"):
        read_lines(bad_encoding(file, 3))
    file.write_bytes("eins\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.txt:1: not UTF-8 .* `iconv -f utf-16"):
        read_lines(file)


def test_the_lines_before_a_fault_are_delivered(file):
    lines = iter_lines(bad_encoding(file, 3))
    assert [next(lines), next(lines)] == LINES[:2]


@pytest.mark.parametrize("drop", [1, 8, 12, 20])
def test_a_gzip_file_that_is_cut_off_is_named(file, drop):
    with pytest.raises(DataError, match=r"a\.txt\.gz: the file is cut off"):
        read_lines(truncated(packed(file), drop))


def test_a_damaged_gzip_file_is_named(file):
    path = packed(file)
    data = bytearray(path.read_bytes())
    data[-6] ^= 255  # the checksum
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.txt\.gz: damaged"):
        read_lines(path)


def test_a_file_that_is_not_there_is_an_error_of_the_data(tmp_path):
    with pytest.raises(DataError, match=r"x: no such file"):
        read_lines(tmp_path / "x")
    with pytest.raises(DataError, match=r"can't be read"):
        read_lines(tmp_path)


def test_find_takes_the_file_with_or_without_gz(file, tmp_path):
    assert find(tmp_path, "a.txt") == find(tmp_path, "a.txt.gz") == file
    path = packed(file)
    assert find(tmp_path, "a.txt") == find(tmp_path, "a.txt.gz") == path
    with pytest.raises(DataError, match=r"a\.tx: no such file, plain or \.gz; did you mean"):
        find(tmp_path, "a.tx")


def test_a_glob_finds_each_file_once_plain_or_gzipped(tmp_path):
    folder = tmp_path / "odd [1]"
    folder.mkdir()
    for name in ("a.txt", "a.txt.gz", "b.txt.gz", "c.csv", "d[1].txt"):
        (folder / name).write_bytes(b"")
    assert [p.name for p in find_all(folder, "*.txt")] == ["a.txt", "b.txt.gz", "d[1].txt"]
    assert [p.name for p in find_all(folder, "d[1].txt")] == ["d[1].txt"]
    assert [p.name for p in find_all(tmp_path, str(folder / "a.txt"))] == ["a.txt"]


def test_json_faults_are_named_with_the_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a":\n [1, 2,]}')
    with pytest.raises(DataError, match=r"a\.json:2: not JSON"):
        read_json(path)
    path.write_text('{"a":\n [1, 2')
    with pytest.raises(DataError, match=r"a\.json:2: not JSON: .* at column 7; it is cut off here"):
        read_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(path) == {"a": 1}
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="too many brackets"):
        read_json(path)
    path.write_text("1" * 5_000)
    with pytest.raises(DataError, match=r"a\.json: not JSON: .*digits"):
        read_json(path)


CUTTABLE = {
    "words \u00e4\u6587\U0001f415": ['back\\\\slash "quoted"', True, False, None, float("nan")],
    "numbers": [-1.5e-10, 12.25, 0, -7, 1e300, {"inner": [[], {}]}, float("-inf")],
}


@pytest.mark.parametrize("pack", [lambda data: b"\xef\xbb\xbf" + data, gzip.compress])
@pytest.mark.parametrize("ascii", [False, True])
def test_json_that_is_cut_anywhere_is_said_to_be_cut_off(tmp_path, pack, ascii):
    path = tmp_path / ("a.json.gz" if pack is gzip.compress else "a.json")
    text = json.dumps(CUTTABLE, ensure_ascii=ascii, indent=1)
    data = pack(text.encode())
    place = r"a\.json\.gz: the file is" if pack is gzip.compress else r"a\.json:\d+: not .* is"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=f"{place} cut off"):
            read_json(path)
    path.write_bytes(data)
    assert json.dumps(read_json(path), ensure_ascii=ascii, indent=1) == text


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(("end", "ascii"), [(b"\n", False), (b"\r\n", True)])
def test_json_lines_that_are_cut_anywhere_are_said_to_be_cut_off(tmp_path, pack, end, ascii):
    path = tmp_path / "a.jsonl.gz"
    line = json.dumps(CUTTABLE, ensure_ascii=ascii).encode()
    data = pack((line + end) * 2)
    for size in range(len(data)):
        path.write_bytes(data[:size] if size or pack is gzip.compress else line[:9])
        whole, inside = divmod(size, len(line + end))
        if pack is bytes and size and (not inside or inside >= len(line)):  # between two lines
            assert len(list(read_jsonl(path))) == whole + (inside >= len(line))
            continue
        place = rf"a\.jsonl\.gz:{whole + 1}: not .* is" if pack is bytes else "gz: the file is"
        with pytest.raises(DataError, match=f"{place} cut off"):
            list(read_jsonl(path))


def test_json_that_is_wrong_before_its_end_is_not_said_to_be_cut_off(tmp_path):
    path = tmp_path / "a.jsonl"
    for fault in ('{"a": [1, 2,]}', '{"a": tru}', '{"a": 1.}', '{"a": "\\x"}', '{"a" 1}', "{} {"):
        path.write_text(fault)
        for read in (read_json, lambda file: list(read_jsonl(file))):
            with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON: .* at column \d+$"):
                read(path)


def test_json_lines_are_numbered_and_faults_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: expected an object .*\[1\]"):
        list(read_jsonl(path))
    for fault in ('{"a": ', '{"a": ' + "1" * 5_000 + "}"):
        path.write_text('{"a": 1}\n' + fault + "\n")
        with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
            list(read_jsonl(path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("12_ab.jpg#zhc#0 eine # Zeile", ("12_ab", "zhc", 0, "eine # Zeile")),
        ("12#zhm#1\ttext", ("12", "zhm", 1, "text")),
        ("12.jpg#3\ttext", ("12", "", 3, "text")),
        ("G_x.y.mp4#enc#15 text", ("G_x.y", "enc", 15, "text")),
        ("12.jpg.1#2 text", ("12.jpg.1", "", 2, "text")),
        ("12#zhm#1", ("12", "zhm", 1, "")),
        ("12#zhm#1 ", ("12", "zhm", 1, "")),
    ],
)
def test_a_tagged_line_is_taken_apart(line, expected):
    assert tagged_line(line) == expected


@pytest.mark.parametrize("line", ["", "text", "12#zhm#x text", "#zhm#1 text", "12#zhm#1text"])
def test_another_line_is_refused_with_its_place(line):
    with pytest.raises(DataError, match=r"f:7: expected `<id>#<tag>#<n> <text>`, got"):
        tagged_line(line, "f:7")
