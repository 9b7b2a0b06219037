"""Tables of captions and sizes: four formats, names and images, mistakes with their lines, and what a start costs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from simpletuner.data import table as tables
from simpletuner.data.stores.local import LocalSource
from simpletuner.data.table import TableKeys
from simpletuner.errors import DataError
from simpletuner.types import Progress

IMAGES = ["a.png", "b/c.jpg", "d.png"]
ROWS = [
    {"file_name": "a.png", "text": "one", "w": 10, "h": 20},
    {"file_name": "b/c", "text": ["two", " ", "three"], "w": None, "h": None},
    {"file_name": "./d.png", "text": "", "w": 7, "h": 8},
]


def read(path: Path, text: str | bytes | None = None, images=IMAGES, sizes=False, **keys):
    """The contents of a table, after the text is written to it."""
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if sizes:
        keys |= {"width_column": "w", "height_column": "h"}
    found = tables.table("jsonl", TableKeys(**keys), path=path, captions=True, sizes=sizes)
    return tables.read(found, LocalSource(path.parent), images)


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def cells(rows) -> str:
    return "file_name,text,w,h\n" + "".join(f'{r["file_name"]},"{r["text"]}",{r["w"]},{r["h"]}\n' for r in rows)


def write(path: Path, rows) -> Path:
    """The rows in the format of the path's ending."""
    if path.suffix == ".parquet":
        as_lists = [row | {"text": [row["text"]] if isinstance(row["text"], str) else row["text"]} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(as_lists), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({row["file_name"]: row for row in rows}, indent=1))
    else:
        path.write_text(lines(rows) if path.suffix == ".jsonl" else cells(rows))
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_captions_and_sizes(tmp_path, ending):
    found = read(write(tmp_path / f"t{ending}", ROWS), sizes=True)
    assert not found.problems and not found.notices
    assert {path: facts.captions for path, facts in found.facts.items()} == {
        "a.png": ("one",),
        "b/c.jpg": ("two", "three"),
        "d.png": (),
    }
    assert [facts.size for facts in found.facts.values()] == [(20, 10), None, (8, 7)]


def test_csv_with_quoted_cells(tmp_path):
    text = '\ufefffile_name,text,w,h\na.png,"one, and\r\n""two""",10,20\n\nd.png,,,\n'
    found = read(tmp_path / "t.csv", text, sizes=True)
    assert not found.problems
    assert found.facts["a.png"][1:] == (('one, and\n"two"',), (20, 10))
    assert found.facts["d.png"] == (5, (), None)


def test_json_values_are_a_text_a_list_or_an_object(tmp_path):
    value = {"a": "one", "b/c.jpg": ["two", "three"], "d.png": {"tags": "x, y"}}
    facts = read(tmp_path / "t.json", json.dumps(value)).facts
    assert [facts[path].captions for path in IMAGES] == [("one",), ("two", "three"), ("x, y",)]


def test_columns_are_named_found_or_fallen_back_to(tmp_path):
    rows = [{"id": 1, "words": "", "prompt": "p", "more": "m"}, {"id": 2, "words": "w", "caption": "c", "prompt": "p"}]
    path, images = tmp_path / "t.jsonl", ["1.png", "2.png"]

    def words(**keys):
        found = read(path, lines(rows), images, filename_column="id", **keys)
        return [facts.captions for facts in found.facts.values()]

    assert words() == [("p",), ("c",)]
    assert words(caption_column="words") == [(), ("w",)]
    assert words(caption_column="words", fallback_caption_column="more") == [("m",), ("w",)]


def test_utf_16_is_known_by_its_mark(tmp_path):
    assert read(tmp_path / "t.csv", "file_name,text\na,é\n".encode("utf-16")).facts["a.png"].captions == ("é",)


def test_a_name_is_a_whole_one_first_and_whole_only_if_told_so(tmp_path):
    path, images = tmp_path / "t.jsonl", ["a.png", "a.png.jpg", "b.png"]
    text = lines([{"file_name": "a.png", "text": "x"}, {"file_name": "b", "text": "y"}])
    assert set(read(path, text, images).facts) == {"a.png", "b.png"}
    found = read(path, text, images, identifier_includes_extension=True)
    assert set(found.facts) == {"a.png"} and "1 names are no image of the set (line 2: b)" in found.notices[0]


BROKEN = """{"file_name": "a.png", "text": "x"}
{"file_name": "a", "text": "y"
[1]
{"text": "no name"}

{"file_name": "d.png", "text": 5}
{"file_name": "b/c", "text": "nul \\u0000"}
{"file_name": "d", "text": "t", "w": "wide", "h": 1}
"""


def test_all_mistakes_of_a_table_come_together_with_their_lines(tmp_path):
    text = BROKEN.encode() + b'{"file_name": "d.png", "text": "caf\xe9"}\n' + lines(ROWS[:1] * 2).encode()
    found = read(tmp_path / "t.jsonl", text, sizes=True)
    unusable, twice = found.problems
    assert unusable.where == f"{tmp_path}/t.jsonl:2" and unusable.exit_code == 3 and unusable.fix
    assert [detail.partition(":")[0] for detail in unusable.details] == [f"line {n}" for n in (2, 3, 4, 6, 7, 8, 9)]
    parts = ("no JSON", "no object", "names no", "neither", "NUL", "pixels", "UTF-8")
    assert all(part in detail for detail, part in zip(unusable.details, parts, strict=True))
    assert twice.details == ("a.png: lines 1, 10 and 11",) and twice.where.endswith(":10")


def test_broken_lines_of_csv_and_json(tmp_path):
    found = read(tmp_path / "t.csv", b'file_name,text\na.png,x,y\n"b/c" z,q\nd.png,ok\nd,caf\xe9\n')
    assert [detail[:6] for detail in found.problems[0].details] == ["line 2", "line 3", "line 5"]
    found = read(tmp_path / "t.json", '{\n"a.png": "x",\n"b/c": "y",\n "a.png": "z"}')
    assert found.problems[0].details == ("a.png: lines 2 and 4",)
    for text in ('{"a": 1,', "[]", '{1: "x"}', '{"a" "x"}', "\ud800".encode(errors="surrogatepass")):
        assert "cannot be read" in read(tmp_path / "t.json", text).problems[0].message
    assert "no parquet file" in read(tmp_path / "t.parquet", "x").problems[0].message


def test_a_missing_column_lists_those_that_there_are(tmp_path):
    for name in ("t.csv", "t.parquet", "t.jsonl"):
        found = read(write(tmp_path / name, ROWS[:1]), caption_column="captions", fallback_caption_column="more")
        (problem,) = found.problems
        assert '"captions" and no column "more"' in problem.message and "file_name, text, w, h" in problem.details[0]
        found = read(tmp_path / name, filename_column="name")
        assert 'no column "name"' in found.problems[0].message and len(found.problems) == 1
    found = read(tmp_path / "t.jsonl", '{"file_name": "a.png"}')
    assert 'no column "text" or "caption" or "prompt"' in found.problems[0].message


def test_names_that_fit_several_images_or_none(tmp_path):
    path, text = tmp_path / "t.jsonl", lines([{"file_name": "a", "text": "x"}, {"file_name": "z", "text": "x"}])
    found = read(path, text, ["a.png", "a.jpg"])
    unsure, lost = found.problems
    assert unsure.details == ("line 1: a may be a.png or a.jpg",)
    assert lost.details == ("line 2: z",) and lost.where == f"{path}:2" and "a.png" in lost.fix
    found = read(path, text, ["a.png"])
    assert not found.problems and "line 2: z" in found.notices[0]


# ---- whole datasets


@pytest.fixture
def rows(pictures, world):
    """Rows for the six pictures, with their sizes."""
    sizes = [(120, 60) if number % 2 else (80, 80) for number in range(6)]
    return [{"file_name": f"a_cat_{n}.png", "text": f"cat {n}", "w": w, "h": h} for n, (w, h) in enumerate(sizes)]


SIZES = {"width_column": "w", "height_column": "h"}


def test_metadata_among_the_images_gives_the_captions(world, pictures, rows):
    (world.folder / "images/metadata.jsonl").write_text(lines(rows))
    entry = {**pictures, "caption_strategy": "jsonl", "caption_dropout_probability": 0.0}
    loader = world.loader(world.open(entry), Progress())
    batches = [loader.next() for _ in range(6)]
    loader.close()
    assert all(f"a_{c.replace(' ', '_')}.png" in i for b in batches for i, c in zip(b.ids, b.captions, strict=True))
    counts = world.counts()
    (world.folder / "images/metadata.jsonl").write_text(lines([rows[0] | {"text": "other"}, *rows[1:]]))
    world.loader(world.open(entry), Progress())
    assert world.counts() == counts | {"texts": counts["texts"] + 1, "text_loads": 2}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_sizes_from_a_table_open_no_file_and_place_as_headers_do(world, pictures, rows, kind):
    table = write(world.folder / f"t.{kind}", rows)
    entry = {**pictures, "caption_strategy": kind, kind: {"path": str(table), **SIZES}}
    plain = world.open({**entry, "id": "plain"}).shelves[0]
    shelf = world.open({**entry, "metadata_backend": kind}).shelves[0]
    assert shelf.scan.headers_read == 0 and plain.scan.headers_read == 6
    assert [(i.sample.size, i.placement, i.sample.captions) for i in shelf.items] == [
        (i.sample.size, i.placement, i.sample.captions) for i in plain.items
    ]
    shelf.hash()
    assert not shelf.mended and world.open({**entry, "metadata_backend": kind}).shelves[0].scan.headers_read == 0


def test_a_wrong_size_is_mended_and_told_before_training(world, pictures, rows):
    """One square that the table makes wide, one wide that it makes square, one that it makes large."""
    rows[0] |= {"w": 120, "h": 60}
    rows[1] |= {"w": 80, "h": 80}
    rows[2] |= {"w": 999, "h": 999}
    (world.folder / "images/metadata.jsonl").write_text(lines(rows))
    entry = {**pictures, **SIZES, "caption_strategy": "jsonl", "metadata_backend": "jsonl"}
    plain = world.open({**pictures, "caption_strategy": "jsonl", "id": "t"}).shelves[0]
    truth = {i.sample.path: i for i in plain.items}
    library = world.open(entry)
    shelf = library.shelves[0]
    loader = world.loader(library, Progress())
    assert all(i.sample.size == truth[i.sample.path].sample.size for i in shelf.items) and len(shelf.items) == 6
    assert {i.placement for i in shelf.items} == {i.placement for i in truth.values()}
    shapes = {b.ids[0]: tuple(b.latents.shape[2:]) for b in (loader.next() for _ in range(6))}
    loader.close()
    assert len(shapes) == 6 and shapes["cats/a_cat_0.png"] == (8, 8)
    told = [e.data for e in world.seen if e.data.get("code") == "sizes-mended"]
    assert len(told) == 1 and "3 sizes of the table are wrong: a_cat_0.png is 80x80, not 120x60" in told[0]["message"]
    again = world.open(entry).shelves[0]
    assert any("3 sizes in metadata.jsonl are wrong" in notice for notice in again.scan.notices)
    assert {i.placement for i in again.items} == {i.placement for i in shelf.items}


def test_an_image_that_is_too_small_in_truth_is_left_out_and_comes_back_with_other_options(world, pictures, rows):
    rows[0] |= {"w": 500, "h": 500}
    (world.folder / "images/metadata.jsonl").write_text(lines(rows))
    entry = {**pictures, **SIZES, "caption_strategy": "jsonl", "metadata_backend": "jsonl"}
    shelf = world.open({**entry, "minimum_image_size": 84}).shelves[0]
    assert "a_cat_0.png" in [item.sample.path for item in shelf.items]
    shelf.hash()
    assert "a_cat_0.png" in [item.path for item in shelf.scan.left_out if item.reason == "too-small"]
    assert len(world.open(entry).shelves[0].items) == 6


def test_sizes_nobody_looked_at_are_read_once_the_table_is_gone(world, pictures, rows):
    rows[0] |= {"w": 500, "h": 500}
    (world.folder / "images/metadata.jsonl").write_text(lines(rows))
    table = {**pictures, **SIZES, "metadata_backend": "jsonl"}
    assert world.open(table).shelves[0].items[0].sample.size == (500, 500)
    (world.folder / "images/metadata.jsonl").write_text(lines([rows[0] | {"w": 400}, *rows[2:]]))
    shelf = world.open(table).shelves[0]
    assert shelf.items[0].sample.size == (500, 400) and shelf.scan.headers_read == 1  # the second has no row any more
    shelf = world.open(pictures).shelves[0]
    assert shelf.items[0].sample.size == (80, 80) and shelf.scan.headers_read == 5


def test_an_image_without_a_row_or_with_an_empty_cell_has_no_caption(world, pictures, rows):
    (world.folder / "images/metadata.jsonl").write_text(lines([rows[0] | {"text": " "}, *rows[2:]]))
    entry = {**pictures, "caption_strategy": "jsonl"}
    with pytest.raises(DataError, match="2 images have no caption") as found:
        world.open(entry)
    assert found.value.problems[0].details == ("a_cat_0.png", "a_cat_1.png")
    assert len(world.open({**entry, "missing_caption": "skip"}).shelves[0].items) == 4


def test_mistakes_in_the_tables_of_all_datasets_come_together(world, pictures, rows):
    path = world.folder / "t.csv"
    path.write_text(cells([rows[0], rows[0], *rows[2:]]))
    with pytest.raises(DataError) as found:
        world.open(
            {**pictures, "caption_strategy": "csv", "csv": {"path": str(path)}},
            {**pictures, "id": "b", "caption_strategy": "jsonl"},
        )
    text = "\n".join(f"{p.where} {p.message} {p.details}" for p in found.value.problems)
    assert f"{path}:3 dataset cats: 1 images have several rows ('a_cat_0.png: lines 2 and 3',)" in text
    assert "dataset b: the table cannot be read: No such file" in text and "metadata.jsonl" in text


def test_global_columns_of_parquet_are_the_defaults(world, pictures, rows):
    renamed = [{"name": row["file_name"][:-4], "words": row["text"]} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(renamed), world.folder / "t.parquet")
    columns = {"parquet_caption_column": "words", "parquet_filename_column": "name", "caption_strategy": "parquet"}
    world.options = world.options.model_copy(update=columns)
    items = world.open({**pictures, "parquet": {"path": str(world.folder / "t.parquet")}}).shelves[0].items
    assert [item.sample.captions for item in items] == [(f"cat {n}",) for n in range(6)]


def test_keys_of_a_table_that_is_not_used_give_a_notice(world, pictures):
    found, problems = world.load({**pictures, "jsonl": {"caption_column": "x"}, "width_column": "w"})
    assert found and [p.severity for p in problems] == ["notice", "notice"]
    keys = {"caption_strategy": "jsonl", "width_column": "w", "height_column": "h"}
    found, problems = world.load({**pictures, **keys})
    assert found and [p.severity for p in problems] == ["notice"] and "metadata_backend" in problems[0].fix
