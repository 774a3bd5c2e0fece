import pytest
from PIL import Image

from xlcm.data.scenes import NOISE_KINDS
from xlcm.data.scenes.sheet import main, noise_rows, noise_table


def test_sheets_are_pictures_of_the_size_that_their_rows_need(tmp_path):
    main(["--out", str(tmp_path / "made" / "sheet.png"), "--pictures", "2"])
    main(["--out", str(tmp_path / "noise.png"), "--noise", "--item", "19"])
    with Image.open(tmp_path / "made" / "sheet.png") as sheet:
        assert sheet.size == (1400, 310)
    with Image.open(tmp_path / "noise.png") as sheet:
        assert sheet.size == (1400, 760)


def test_table_has_every_kind_and_the_right_caption_first():
    rows = noise_rows(19)
    assert [kind for kind, _ in rows] == ["right", *NOISE_KINDS]
    right = rows[0][1]
    for kind, found in rows[1:]:
        for lang in ("de", "zh"):
            assert found[lang][0] != right[lang][0], kind
            assert (found[lang][1] == right[lang][1]) == (kind == "untranslated"), kind
    assert len(noise_table(19, ["sw"]).splitlines()) == 2 + 1 + len(NOISE_KINDS)


def test_sheet_needs_a_file_to_write():
    with pytest.raises(SystemExit):
        main([])
