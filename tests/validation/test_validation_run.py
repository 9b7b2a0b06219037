import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from simpletuner.errors import ConfigError, Stopped
from simpletuner.events import read_lines
from simpletuner.types import Progress, Prompt, Size


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def pixels(path):
    return np.asarray(opened(path).convert("RGB"))


def test_each_image_lies_under_its_name_with_its_settings_inside(studio):
    run = studio.run(validation_guidance_real=2.0, validation_negative_prompt="dark")
    run.run(40)
    assert studio.files("validation_images") == ["step_40_chef_0_64x64.png", "step_40_unconditional_0_64x64.png"]
    text = opened(studio.output_dir / "validation_images/step_40_chef_0_64x64.png").text
    assert {**text, "adapter": ""} == {
        "prompt": "a chef", "negative_prompt": "dark", "no_cfg_steps": "2", "seed": "42", "size": "64x64", "steps": "3",
        "guidance": "3.5",
        "guidance_real": "2.0", "sampler": "euler", "base": "base/fp32", "adapter": "",
        "adapter_strength": "1.0", "step": "40",
    }  # fmt: skip
    request = studio.sampler.requests[1]
    assert request.size == Size(64, 64) and request.skip_real_steps == 2 and request.negative["t5"][0, 0, 0] == 4
    record = read_lines(studio.output_dir / "validation_media.jsonl")[1]
    assert (record["step"], record["nickname"], record["W"], record["H"]) == (40, "chef", 64, 64)
    assert str(studio.output_dir) not in json.dumps(record)
    assert [e.type for e in studio.seen if e.type.startswith(("val", "sam"))] == [
        "validation.started", "sample.saved", "sample.saved", "validation.finished"
    ]  # fmt: skip


@pytest.mark.parametrize(("format", "extension"), [("webp", "webp"), ("jpeg", "jpg")])
def test_lossy_images_carry_their_settings_in_exif(studio, format, extension):
    studio.run(prompts=[Prompt("x", "शेर in the sun")], validation_image_format=format).run(1)
    image = opened(studio.output_dir / f"validation_images/step_1_x_0_64x64.{extension}")
    assert json.loads(image.getexif()[0x010E])["prompt"] == "शेर in the sun"


def test_noise_is_what_a_plain_torch_generator_draws_for_the_number(studio):
    studio.run(prompts=[Prompt("a", "a"), Prompt("b", "b", seed=7)], num_validation_images=2, validation_seed=5).run(10)
    drawn = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 6, 7, 8)]
    assert all(torch.equal(r.noise, d) for r, d in zip(studio.sampler.requests, drawn, strict=True))


def test_randomized_numbers_change_with_the_step_and_repeat_with_it(studio):
    run = studio.run(prompts=[Prompt("a", "a")], validation_randomize=True)
    run.run(1)
    run.run(2)
    (studio.output_dir / "validation_media.jsonl").unlink()
    studio.run(prompts=[Prompt("a", "a")], validation_randomize=True).run(1)
    one, two, again = (r.noise for r in studio.sampler.requests)
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_an_entry_overrides_the_run_and_other_prompts_do_not_notice(studio):
    special = Prompt("s", "s", sizes=(Size(32, 64), Size(64, 64)), steps=5, guidance=1.5, adapter_strength=0.5)
    studio.adapter.weight.data.fill_(0.4)
    studio.run(prompts=[special, Prompt("p", "p")]).run(1)
    first, second, plain = studio.sampler.requests
    assert (first.size, second.size, first.steps, first.guidance) == (Size(32, 64), Size(64, 64), 5, 1.5)
    assert (plain.size, plain.steps, plain.guidance) == (Size(64, 64), 3, 3.5)
    assert studio.files("validation_images")[1:] == ["step_1_s_0_64x32.png", "step_1_s_0_64x64.png"]
    record = read_lines(studio.output_dir / "validation_media.jsonl")[0]
    assert record["settings"]["adapter_strength"] == 0.5 and (record["W"], record["H"]) == (64, 32)


def test_global_generators_and_weights_are_untouched(studio):
    run = studio.run()
    state = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    run.start(0)
    run.run(1)
    assert random.getstate() == state[0]
    assert repr(np.random.get_state()) == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert studio.adapter.strength == 1.0 and not studio.adapter.weight.any() and studio.adapter.weight.grad is None


def test_all_latents_are_made_before_the_vae_is_loaded_once(studio):
    loads_at = []
    load = studio.load_vae
    studio.load_vae = lambda: (loads_at.append(len(studio.sampler.requests)), load())[1]
    studio.run(num_validation_images=2).run(1)
    assert loads_at == [4]


def test_base_images_are_made_once_with_the_adapter_off(studio):
    studio.adapter.weight.data.fill_(0.8)
    studio.run().benchmark()
    assert studio.files("benchmarks/base_model") == ["chef_64x64.png", "index.json", "unconditional_64x64.png"]
    base = pixels(studio.output_dir / "benchmarks/base_model/chef_64x64.png")
    studio.run().run(1)
    assert (base != pixels(studio.output_dir / "validation_images/step_1_chef_0_64x64.png")).any()
    studio.adapter.weight.data.zero_()
    studio.run().run(2)
    assert (base == pixels(studio.output_dir / "validation_images/step_2_chef_0_64x64.png")).all()
    studio.sampler.requests.clear()
    studio.run().benchmark()
    assert not studio.sampler.requests


def test_a_base_that_is_trained_itself_is_seen_before_the_first_step_only(studio):
    """Nobody asks such an adapter for its base; what is there is used, what is missing is said once."""
    studio.adapter.disabled = None
    studio.run(base_stays=False).start(0)
    assert studio.files("benchmarks/base_model") == ["chef_64x64.png", "index.json", "unconditional_64x64.png"]
    studio.adapter.weight.data.fill_(0.8)
    (studio.output_dir / "benchmarks/base_model/chef_64x64.png").unlink()
    studio.sampler.requests.clear()
    later = studio.run(base_stays=False)
    later.start(4)
    assert not studio.sampler.requests
    told = [event for event in studio.seen if event.severity == "notice"]
    assert ["1 image of the base model cannot be made" in event.data["message"] for event in told] == [True]
    later.run(5)
    assert studio.files("compared") == ["step_5_unconditional_0_64x64.png"]


def test_only_base_images_whose_settings_changed_are_made_again(studio):
    studio.run().benchmark()
    studio.sampler.requests.clear()
    studio.run(prompts=[Prompt("unconditional", ""), Prompt("chef", "a cook")]).benchmark()
    assert len(studio.sampler.requests) == 1
    (studio.output_dir / "benchmarks/base_model/chef_64x64.png").unlink()
    studio.run(prompts=[Prompt("unconditional", ""), Prompt("chef", "a cook")]).benchmark()
    assert len(studio.sampler.requests) == 2
    studio.run(base_id="other/fp32").benchmark()
    assert len(studio.sampler.requests) == 4
    index = json.loads((studio.output_dir / "benchmarks/base_model/index.json").read_text())
    assert sorted(r["file"] for r in index["images"]) == ["chef_64x64.png", "unconditional_64x64.png"]


def test_a_base_image_of_other_settings_is_never_shown_beside(studio):
    studio.run().benchmark()
    run = studio.run(validation_num_inference_steps=9, disable_benchmark=True)
    run.start(0)
    run.run(1)
    assert not (studio.output_dir / "compared").exists()


def test_compared_and_sheet_show_base_previous_and_this(studio):
    run = studio.run()
    run.start(0)
    for step in (10, 20):
        studio.adapter.weight.data.add_(0.3)
        run.run(step)
    assert studio.files("compared") == studio.files("validation_images")
    compared = opened(studio.output_dir / "compared/step_20_chef_0_64x64.png")
    assert compared.size == (192 + 4 + 192, 32 + 192)
    base = pixels(studio.output_dir / "benchmarks/base_model/chef_64x64.png")
    assert (np.asarray(compared)[32::3, :192:3] == base).all()
    assert opened(studio.output_dir / "sheets/step_10.jpg").width == 2 * 192 + 4 + 32
    assert opened(studio.output_dir / "sheets/step_20.jpg").size == (3 * 192 + 8 + 32, 32 + 2 * (50 + 192) + 20 + 32)


def test_a_row_of_the_sheet_is_its_prompt_and_what_the_nickname_adds(studio, monkeypatch):
    from simpletuner.validation import grid

    drawn = []
    monkeypatch.setattr(grid, "contact_sheets", lambda columns, rows: drawn.extend(rows) or [])
    prompts = [Prompt("in_the_set_cat", "a cat"), Prompt("unconditional", ""), Prompt("शेर", "एक शेर")]
    studio.run(prompts).run(5)
    assert [row[:2] for row in drawn] == [("a cat", "in the set"), ("no prompt", "unconditional"), ("prompt 3", "")]
    drawn.clear()
    studio.run(prompts[:1], validation_resolution="64x64,32x64", num_validation_images=2).run(6)
    assert [row[1] for row in drawn] == [
        f"in the set   {size}   {number} of 2" for size in ("64x64", "32x64") for number in (1, 2)
    ]


def test_images_of_the_same_step_and_settings_are_not_made_again(studio):
    studio.run().run(10)
    studio.sampler.requests.clear()
    studio.run().run(10)
    assert not studio.sampler.requests and studio.seen[-1].data["skipped"] == 2
    (studio.output_dir / "validation_images/step_10_chef_0_64x64.png").unlink()
    studio.run().run(10)
    assert len(studio.sampler.requests) == 1
    studio.adapter.weight.data.fill_(1.0)  # step 10 of a run that began again is another picture
    studio.run().run(10)
    assert len(studio.sampler.requests) == 3


def test_memory_ladder_tiles_then_decodes_on_the_cpu(studio):
    studio.sampler.room_for_decode = {"whole": 10, "tiled": 10}
    run = studio.run()
    run.run(1)
    assert len(studio.files("validation_images")) == 2
    assert [w.rsplit("decoded ")[1] for w in studio.warnings()] == ["in tiles", "on the CPU"]
    assert (studio.vae.use_tiling, studio.vae.tile_sample_min_size, studio.vae.tile_latent_min_size) == (
        False,
        1024,
        128,
    )
    assert not studio.vae.moved


def test_memory_ladder_halves_the_edge_and_the_name_says_so(studio):
    studio.sampler.room_for_decode = {"whole": 16, "tiled": 16, "cpu": 16}
    run = studio.run()
    run.run(1)
    assert studio.files("validation_images") == ["step_1_chef_0_32x32.png", "step_1_unconditional_0_32x32.png"]
    assert len(studio.warnings()) == 3
    run.run(2)  # what did not fit is not tried again
    assert len(studio.warnings()) == 3 and studio.sampler.requests[-1].size == Size(32, 32)
    studio.sampler.room_for_decode["cpu"] = 1
    run.run(3)
    assert all("left out" in w for w in studio.warnings()[3:]) and len(studio.warnings()) == 5
    assert studio.seen[-1].data["images"] == 0


def test_memory_while_sampling_halves_then_skips(studio):
    studio.sampler.room = 16
    run = studio.run()
    run.start(0)
    assert studio.files("benchmarks/base_model") == ["chef_32x32.png", "index.json", "unconditional_32x32.png"]
    studio.sampler.room = 1
    run.run(1)
    assert studio.files("validation_images") == [] and studio.seen[-1].type == "validation.finished"
    studio.sampler.room = 16
    run.run(2)
    assert opened(studio.output_dir / "compared/step_2_chef_0_32x32.png").size == (388, 224)


def test_no_failure_reaches_the_run(studio):
    def broken():
        raise ValueError("the weights file is damaged")

    studio.load_vae = broken
    studio.run().run(1)
    assert "the weights file is damaged" in studio.warnings()[0]
    (studio.output_dir / "validation_images").write_text("a file where the folder should be")
    del studio.load_vae
    studio.run().run(2)
    assert len(studio.warnings()) == 2
    studio.sampler.conv.weight.data.fill_(float("nan"))
    studio.run().run(3)
    assert "not finite" in studio.warnings()[0]


def test_a_stop_is_heard_between_images(studio):
    studio.stop_after = 1
    studio.run().run(1)
    assert len(studio.sampler.requests) == 1 and studio.vae_loads <= 1

    def stop(text):
        raise Stopped("signal", 143)

    studio.stop_after = 10**9
    studio.embed = stop
    with pytest.raises(Stopped):
        studio.run().run(2)


def test_disabled_means_none_at_all(studio):
    run = studio.run(validation_disable=True, validation_on_startup=True)
    run.start(0)
    run.run(100)
    assert not run.due(Progress(step=100), last=True)
    assert not studio.sampler.requests and studio.seen == []


def test_startup_makes_base_and_step_images(studio):
    studio.run(validation_on_startup=True).start(7)
    assert studio.files("validation_images")[0] == "step_7_chef_0_64x64.png"
    assert len(studio.files("benchmarks/base_model")) == 3


def test_due_follows_steps_epochs_and_always_the_last(studio):
    run = studio.run(
        validation_step_interval=10, validation_epoch_interval=2, validate_after_step=20, validate_after_epoch=1
    )
    due = [
        step
        for step in range(1, 61)
        if run.due(Progress(step=step, epoch=1 + step // 25), last=step == 59, epoch_done=step % 25 == 24)
    ]
    assert due == [30, 40, 49, 50, 59, 60]
    by_epoch = studio.run(validation_step_interval=1000, validation_epoch_interval=2)
    done = [epoch for epoch in range(1, 7) if by_epoch.due(Progress(step=epoch * 7, epoch=epoch), epoch_done=True)]
    assert done == [2, 4, 6]
    late = studio.run(validation_step_interval=1, validate_after_epoch=2)
    assert not late.due(Progress(step=5, epoch=1), epoch_done=True)
    assert late.due(Progress(step=10, epoch=2), epoch_done=True) and late.due(Progress(step=11, epoch=3))
    assert late.due(Progress(step=1), last=True)


def test_a_size_that_cannot_be_read_is_a_configuration_error(studio):
    with pytest.raises(ConfigError, match="not a size"):
        studio.run(validation_resolution="1024by1024")


def test_forty_validations_do_not_grow_the_process(studio):
    resource = pytest.importorskip("resource")
    run = studio.run(disable_benchmark=True)
    for step in range(5):
        run.run(step)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(5, 45):
        run.run(step)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 20
