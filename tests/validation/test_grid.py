import numpy as np
import pytest
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


def sheet_rows(count, size=(64, 64), columns=3):
    return [Row(f"prompt {i}", "", [fit(picture(*size, (i, 0, 0)))] * columns) for i in range(count)]


def reds(*pages):
    return {colour[0] for page in pages for _, colour in page.getcolors(1 << 24) if colour[1:] == (0, 0)}


@pytest.mark.parametrize("size", [(64, 64), (1024, 1024), (1024, 512), (512, 1024)])
@pytest.mark.parametrize("count", [1, 7, 17, 60])
def test_sheets_stay_within_4096_pixels_and_hold_every_row(count, size):
    pages = contact_sheets(("base model", "before", "step 9"), sheet_rows(count, size))
    assert all(max(page.size) <= 4096 for page in pages)
    assert set(range(count)) <= reds(*pages)


def test_large_pictures_that_fit_no_page_go_on_to_the_next():
    pages = contact_sheets(("base model", "before", "step 9"), sheet_rows(60, (1024, 1024)))
    assert [page.width for page in pages] == [2 * (3 * 512 + 8) + 20 + 32] * len(pages) and len(pages) == 5


@pytest.mark.parametrize("count", [6, 7, 8])
def test_a_handful_of_prompts_makes_a_sheet_of_the_shape_of_a_screen(count):
    (page,) = contact_sheets(("base model", "step 250"), sheet_rows(count, columns=2))
    assert 0.9 < page.width / page.height < 2


def test_prompts_stand_in_reading_order():
    (page,) = contact_sheets(("base model", "step 250"), sheet_rows(7, columns=2))
    pixels = np.asarray(page)
    seen = [value for line in pixels[::8, ::8] for value in dict.fromkeys(line[(line[:, 1:] == 0).all(1)][:, 0])]
    assert list(dict.fromkeys(seen)) == list(range(7))


def test_base_is_left_and_trained_is_right():
    (page,) = contact_sheets(("base", "step 5"), [Row("a", "", [picture(192, 192), picture(192, 192, (0, 0, 9))])])
    pixels = np.asarray(page)[-17]
    assert tuple(pixels[16]) == (200, 40, 40) and tuple(pixels[-17]) == (0, 0, 9)


def test_prompt_and_note_stay_above_their_row_and_within_it():
    long = "a prompt that is much too long to stand above two small pictures, and goes on and on"
    (page,) = contact_sheets(("base", "step 5"), [Row(long, long, [picture(192, 192)] * 2)])
    (plain,) = contact_sheets(("base", "step 5"), [Row("", "", [picture(192, 192)] * 2)])
    drawn = (np.asarray(page) != np.asarray(plain)).any(axis=2)
    rows, columns = np.nonzero(drawn)
    assert rows.min() >= 48 and rows.max() < 98 and columns.min() >= 16 and columns.max() < page.width - 16
    assert drawn[48:77].any() and drawn[78:98].any()  # both lines


def test_a_column_without_pictures_is_left_out_and_a_gap_stays_a_gap():
    rows = [Row("a", "", [None, None, fit(picture(64, 64))]), Row("b", "", [None, fit(picture(64, 64)), None])]
    (page,) = contact_sheets(("base model", "before", "step 9"), rows)
    assert page.width == 192 * 2 + 4 + 32 and {(39, 39, 42)} < {colour for _, colour in page.getcolors(1 << 24)}
    assert contact_sheets(("base model",), [Row("a", "", [None])]) == []


def test_a_prompt_without_any_picture_takes_no_place():
    rows = [Row("a", "", [None]), Row("b", "", [picture(192, 192)])]
    assert contact_sheets(("base",), rows)[0].size == contact_sheets(("base",), rows[1:])[0].size


def test_labels_are_written_in_letters_that_the_font_has():
    assert readable("Chef café 01_-.") == "Chef cafe 01_-." and readable("शेर") is None and readable("猫") is None
