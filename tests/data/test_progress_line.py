"""The line that tells how far long work is."""

import io

from xlcm.data import progress
from xlcm.data.progress import Progress


def test_throughput_and_time_left_are_those_of_all_processes():
    told = Progress(1000, "en to de", 2, True, io.StringIO())
    told.advance(50)
    assert told.text(10.0) == "en to de: 100 of 1,000 lines, 10.0 lines/s, 0:01:30 left"


def test_work_of_unknown_size_is_told_by_what_is_done():
    told = Progress(None, "captions", out=io.StringIO(), unit="rows")
    told.advance(50)
    assert told.text(10.0) == "captions: 50 rows, 5.0 rows/s"


def test_a_log_file_gets_lines_and_only_of_the_process_that_tells(monkeypatch):
    monkeypatch.setattr(progress, "FILE_S", 0.0)
    for show, lines in ((True, 2), (False, 0)):
        out = io.StringIO()
        told = Progress(10, "en to de", 1, show, out)
        told.advance(5), told.advance(5)
        told.close()
        assert len(out.getvalue().splitlines()) == lines
