import numpy as np
from PIL import Image

from simpletuner.validation.grid import Row, beside, contact_sheets, fit, readable


def picture(width, height, colour=(200, 40, 40)):
    return Image.new("RGB", (width, height), colour)


def test_tiny_pictures_are_enlarged_by_a_whole_factor():
    sheet = beside([("base model", picture(64, 64)), ("step 5", picture(64, 64))])
    assert sheet.size == (192 * 2 + 4, 192 + 32)
    assert (
        fit(picture(64, 32)).size == (192, 96)
        and fit(picture(2048, 1024)).size == (512, 256)
        and fit(picture(300, 300)).size == (300, 300)
    )


def test_large_pictures_keep_their_pixels():
    right = picture(1024, 768, (1, 2, 3))
    sheet = beside([("base model", picture(1024, 768)), ("step 5", right)])
    assert (np.asarray(sheet)[32:, -1024:] == np.asarray(right)).all()


def test_pictures_of_two_sizes_get_one_height():
    assert beside([("base model", picture(1024, 1024)), ("step 5", picture(512, 512))]).size == (2052, 1056)


def test_labels_stay_inside_their_band():
    sheet = np.asarray(
        beside(
            [("a very long label that cannot fit into the width of the cell", picture(64, 64)), ("b", picture(64, 64))]
        )
    )
    assert (sheet[32:, :192] == (200, 40, 40)).all()
    assert (sheet[:32, :4] == sheet[0, 0]).all() and (sheet[:32, 184:196] == sheet[0, 0]).all()


def test_sheets_stay_within_4096_pixels_and_hold_every_row():
    rows = [Row(f"prompt {i}", [fit(picture(1024, 1024, (i, 0, 0)))] * 3) for i in range(17)]
    pages = contact_sheets(("base model", "before", "step 9"), rows)
    assert [page.width for page in pages] == [512 * 3 + 8] * 3 and all(page.height <= 4096 for page in pages)
    reds = {colour[0] for page in pages for _, colour in page.getcolors(1 << 24) if colour[1:] == (0, 0)}
    assert set(range(17)) <= reds


def test_a_column_without_pictures_is_left_out_and_a_gap_stays_a_gap():
    rows = [Row("a", [None, None, fit(picture(64, 64))]), Row("b", [None, fit(picture(64, 64)), None])]
    (page,) = contact_sheets(("base model", "before", "step 9"), rows)
    assert page.width == 192 * 2 + 4
    assert contact_sheets(("base model",), [Row("a", [None])]) == []


def test_labels_are_written_in_letters_that_the_font_has():
    assert readable("Chef café 01_-.") == "Chef cafe 01_-." and readable("शेर") is None and readable("猫") is None
