"""The dataset file: what loads, what is refused, and how it is said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from simpletuner.data.datasets import load
from simpletuner.data.options import Data
from simpletuner.reading import COMMENT

SHARED = {
    "type": "local",
    "resolution_type": "pixel_area",
    "caption_strategy": "filename",
    "metadata_backend": "discovery",
    "disabled": False,
    "skip_file_discovery": "",
}


SOME = {"caption_column": "text"}


def sizes(value):
    return dict.fromkeys(("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"), value)


def errors(problems):
    return [p for p in problems if p.severity == "error"]


def said(problems):
    return "\n".join(f"{p.where}: {p.message} | {p.fix} | {p.details}" for p in problems)


def test_the_quickstarts_four_entries_load_without_a_warning(world):
    for name in ("camera", "subject"):
        (world.folder / name).mkdir()
    camera, subject = str(world.folder / "camera"), str(world.folder / "subject")
    prompt = {"caption_strategy": "instanceprompt", "instance_prompt": "a subject", "crop": False, "repeats": 1000}
    cropped = {"crop": True, "crop_aspect": "square", "crop_style": "center"}
    found, problems = world.load(
        {**SHARED, **sizes(512), **cropped, "id": "camera-10k", "instance_data_dir": camera, "repeats": 0}
        | {"is_regularisation_data": True, "cache_dir_vae": "cache/vae/flux/camera-10k"},
        {**SHARED, **sizes(1024), **prompt, "id": "subject", "instance_data_dir": subject},
        {**SHARED, **sizes(512), **prompt, "id": "subject-512", "instance_data_dir": subject},
        {"id": "text-embeds", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text/flux"}
        | {"disabled": False, "write_batch_size": 128},
        alignment=64,
    )
    assert problems == []
    assert [image.id for image in found.images] == ["camera-10k", "subject", "subject-512"]
    assert found.images[1].entry.repeats == 1000 and found.images[1].prompts == ("a subject",)
    assert str(found.text.cache) == "cache/text/flux"


def test_tolerant_spelling_gives_one_warning_each(world, pictures):
    text = '[{"--id": "cats", "type": "local", // note\n "crop": "true", "repeats": "3",\n'
    path = world.folder / "data.json"
    path.write_text(text + f' "instance-data-dir": "{pictures["instance_data_dir"]}",}}]')
    found, problems = load(path, world.options, family="flux", alignment=16, output_dir=world.folder / "out")
    assert found and found.images[0].entry.crop is True and found.images[0].entry.repeats == 3
    assert sorted(p.message for p in problems) == [COMMENT, "trailing comma"]


def test_an_unknown_key_names_the_nearest_and_its_place(world, pictures):
    _, problems = world.load({**pictures, "repeat": 5})
    (problem,) = errors(problems)
    assert '"repeats"' in problem.fix and problem.exit_code == 2
    assert problem.where.endswith("data.json:1:" + problem.where.rpartition(":")[2]) and "cats" in problem.message


def test_all_problems_come_together(world, pictures):
    _, problems = world.load(
        {**pictures, "repeat": 5, "crop_style": "middle", "minimum_aspect_ratio": 2, "maximum_aspect_ratio": 1},
        {**pictures, "resolution": 1024, "resolution_type": "area"},
        {"id": "b", "instance_data_dir": str(world.folder / "nowhere"), "maximum_image_size": 512},
    )
    text = said(errors(problems))
    for part in (
        "repeats",
        "crop_style",
        "minimum_aspect_ratio 2",
        "pixel_area",
        "given twice",
        "needs target_downsample",
    ):
        assert part in text, part
    assert "nowhere" in text


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"resolution": 1024, "resolution_type": "area"}, "1024 megapixels; did you mean pixel_area?"),
        ({"maximum_image_size": 512}, "target_downsample_size"),
        ({"maximum_image_size": 512, "target_downsample_size": 600}, "larger than"),
        ({"resolution": 32}, "below 64 px"),
        ({"resolution": 9000}, "above 20 megapixels"),
        ({"max_upscale_threshold": 1.5}, "outside [0, 1]"),
        ({"crop_aspect": "closest", "crop": True}, "crop_aspect_buckets"),
        ({"crop_aspect_buckets": []}, "at least one"),
        ({"crop_aspect_buckets": [1.0, -2]}, "above 0"),
        ({"crop_aspect_buckets": [{"aspect": 1.0, "weight": 0.5}, {"aspect": 2.0, "weight": 0.4}]}, "sum to 0.9"),
        ({"caption_strategy": "instanceprompt"}, "needs instance_prompt"),
        ({"prepend_instance_prompt": True}, "needs instance_prompt"),
        ({"missing_caption": "instance_prompt"}, "needs instance_prompt"),
        ({"repeats": -1}, "repeats"),
        ({"probability": 0}, "probability"),
        ({"id": "a/b"}, "cannot be part of a file name"),
        ({"id": ""}, "id is required"),
        ({"type": "csv"}, "not yet"),
        ({"type": "webshart"}, "not offered"),
        ({"dataset_type": "video"}, "Flux trains on images"),
        ({"dataset_type": "conditioning"}, "not yet"),
        ({"caption_strategy": "huggingface"}, "not yet"),
        ({"metadata_backend": "huggingface"}, "not yet"),
        ({"caption_strategy": "parquet"}, "parquet needs path"),
        ({"caption_strategy": "jsonl", "jsonl": {"path": "x.txt"}}, "x.txt is no table"),
        ({"caption_strategy": "jsonl", "jsonl": {"path": "no.jsonl"}}, "no.jsonl does not exist"),
        ({"caption_strategy": "jsonl", "jsonl": {"caption_colum": "x"}}, 'unknown key "caption_colum"'),
        ({"caption_strategy": "jsonl", "jsonl": SOME, "csv": SOME}, "a dataset has one table"),
        ({"caption_strategy": "jsonl", "metadata_backend": "csv"}, "a dataset has one table"),
        ({"metadata_backend": "jsonl", "jsonl": {"width_column": "w"}}, "needs width_column and height_column"),
        ({"crop_style": "face"}, "not yet"),
        ({"caption_shuffle": {"enable": True, "counts": 2}}, 'caption_shuffle: unknown key "counts"'),
        ({"caption_shuffle": {"enable": True, "count": 0}}, "caption_shuffle: count: 0"),
        ({"caption_shuffle": 3}, "not an object"),
        ({"start_epoch": 2}, "not yet"),
        ({"vae_cache_ondemand": True}, "not yet"),
        ({"skip_file_discovery": "vae"}, "not yet"),
        ({"delete_unwanted_images": True}, "never deletes your files"),
        ({"cache_dir_vae": "{env:SIMPLETUNER_NO_SUCH_THING}/x"}, "SIMPLETUNER_NO_SUCH_THING"),
        ({"text_embeds": "other"}, "no text cache"),
        ({"disabled": True}, "nothing to train on"),
    ],
)
def test_what_is_refused_and_how_it_is_said(world, pictures, keys, part):
    found, problems = world.load({**pictures, **keys})
    assert found is None and part in said(errors(problems))
    assert len(errors(problems)) == 1, said(problems)
    assert errors(problems)[0].exit_code == 2


@pytest.mark.parametrize(
    "keys",
    [
        {"caption_shuffle": None, "start_epoch": 1, "vae_cache_clear_each_epoch": "false", "conditioning_data": ""},
        {"crop_style": "centre", "caption_strategy": "instance_prompt", "instance_prompt": "x", "crop_variants": 1},
        {"metadata_backend": "json", "vae_cache_preprocess": True, "read_batch_size": 25, "conditioning": []},
        {"minimum_image_size": 0, "hash_filenames": True, "delete_unwanted_images": False, "disable": "false"},
        {"caption_shuffle": {"enable": False, "count": 3}, "scan_for_errors": "none"},
        {"caption_shuffle": {"enable": "true", "seed": 4, "split_on": "space"}},
        {"caption_shuffle": False, "jsonl": {}, "caption_strategy": "jsonl", "parquet": ""},
        {"caption_strategy": "csv", "metadata_backend": "csv", "width_column": "w", "height_column": "h"},
        {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [{"aspect": 1, "weight": 1}]},
    ],
)
def test_features_that_are_off_are_accepted_in_silence(world, pictures, keys):
    found, problems = world.load({**pictures, **keys})
    assert found and problems == []


def filter_list(value):
    return {"id": "t", "dataset_type": "text_embeds", "default": True, "caption_filter_list": value}


def test_filter_lists_come_from_the_entry_or_a_file(world, pictures):
    (world.folder / "list.txt").write_text("\n".join(["blurry, bad", "", "s/cat/dog/"]))
    (world.folder / "list.json").write_text('["blurry, bad", "s/cat/dog/"]')
    for value in (["blurry, bad", "", "s/cat/dog/"], str(world.folder / "list.txt"), str(world.folder / "list.json")):
        found, problems = world.load(pictures, filter_list(value))
        assert not problems
        assert [one.entry for one in found.images[0].filters] == ["blurry, bad", "s/cat/dog/"]


def test_filter_lists_that_cannot_be_used(world, pictures):
    for value, part in (("s/a/b/", "neither a list nor a file"), (["s/(/x/"], "s/(/x/"), ("no.txt", "no.txt")):
        found, problems = world.load(pictures, filter_list(value))
        assert found is None and "caption_filter_list" in said(problems) and part in said(problems)
    found, problems = world.load(pictures, filter_list(["(cat"]))
    assert found and [p.severity for p in problems] == ["notice"]


def test_keys_without_effect_give_a_notice(world, pictures):
    found, problems = world.load({**pictures, "hash_filenames": False})
    assert found and [p.severity for p in problems] == ["notice"]


def test_missing_folders_are_one_dataset_error(world):
    _, problems = world.load(
        {"id": "a", "instance_data_dir": str(world.folder / "no1")},
        {"id": "b", "instance_data_dir": str(world.folder / "no2")},
    )
    (problem,) = problems
    assert problem.exit_code == 3 and "no1" in problem.message and "no2" in problem.message


def test_caches_stay_out_of_the_images_also_through_links(world, pictures):
    link = world.folder / "link"
    link.symlink_to(pictures["instance_data_dir"])
    for cache in (pictures["instance_data_dir"] + "/cache", str(link), pictures["instance_data_dir"]):
        _, problems = world.load({**pictures, "cache_dir_vae": cache})
        assert "must be outside the images" in said(errors(problems))
    _, problems = world.load(pictures, {"id": "t", "dataset_type": "text_embeds", "cache_dir": str(link / "t")})
    assert "must be outside the images" in said(errors(problems))


def test_text_caches(world, pictures):
    text = {"dataset_type": "text_embeds"}
    found, problems = world.load(pictures)
    assert found.text.cache == world.folder / "out/cache/text/flux" and not problems
    assert found.images[0].cache == world.folder / "out/cache/vae/flux/cats"
    found, problems = world.load(pictures, {**text, "id": "t"})
    assert found and [p.severity for p in problems] == ["notice"]
    for flags in ((False, False), (True, True)):
        entries = [{**text, "id": f"t{n}", "default": flag} for n, flag in enumerate(flags)]
        _, problems = world.load(pictures, *entries)
        assert "marked default" in said(errors(problems))
    same = str(world.folder / "same")
    _, problems = world.load(
        {**pictures, "cache_dir_vae": same}, {**text, "id": "t", "cache_dir": same, "default": True}
    )
    assert "equals the text cache" in said(errors(problems))


def test_the_root_is_a_list(world):
    path = world.folder / "data.json"
    for content, part in (("{}", "wrap it in [ ]"), ("[]", "empty"), ("[1]", "expected an object"), ("[", "JSON")):
        path.write_text(content)
        found, problems = load(path, world.options, family="flux", alignment=16, output_dir=world.folder)
        assert found is None and part in said(errors(problems))


def test_entries_win_over_globals(world, pictures):
    world.options = Data(resolution=128, caption_dropout_probability=0.3, vae_batch_size=2)
    found, _ = world.load({**pictures, "resolution": 96})
    entry = found.images[0].entry
    assert (entry.resolution, entry.caption_dropout_probability, entry.vae_batch_size) == (96, 0.3, 2)


def test_small_sizes_of_flux_warn(world, pictures):
    found, problems = world.load({**pictures, "resolution": 448}, alignment=64)
    assert found and [p.severity for p in problems] == ["warning"]


def test_loading_a_dataset_file_imports_no_torch(world, pictures):
    world.write(pictures)
    code = (
        "import sys; from pathlib import Path; from simpletuner.data import datasets, options;"
        f"r = datasets.load(Path({str(world.folder / 'data.json')!r}), options.Data(), family='flux', alignment=64,"
        "output_dir=Path('out')); assert r[0], r[1];"
        "assert not {'torch', 'PIL', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
