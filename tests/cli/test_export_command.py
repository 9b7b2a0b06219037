"""The door of `simpletuner export`: every mistake at once and before torch, and no file of anybody's is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from flux_layers import pairs, spelled
from program import COMMAND, alone, run
from safetensors.torch import load_file, save_file

from simpletuner.adapters import lora_file
from simpletuner.events import EventLog
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.options import Saving

SIZES = {"transformer_blocks.0.attn.to_q": (8, 8), "proj_out": (8, 8)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with cats.safetensors, in diffusers' names and rank 2."""
    alone(monkeypatch, tmp_path)
    tensors, head = spelled(pairs(SIZES), metadata={"ss_steps": "7"})
    save_file(tensors, tmp_path / "cats.safetensors", head)
    return tmp_path


def checkpoint(folder: Path, lora: Path | None, step: int = 5) -> Path:
    """A checkpoint that holds the LoRA, or a model."""
    name = "pytorch_lora_weights.safetensors" if lora else "transformer/config.json"
    contents = Contents(
        writers={name: lambda path: shutil.copy(lora, path) if lora else path.write_text("{}")}, readers={}
    )
    made = Checkpoints(folder, Saving(), EventLog(folder), contents)
    made.prepare()
    made.save(step, "interval", {"step": step})
    return folder / f"checkpoint-{step}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["diffusers", "comfyui", "kohya", "bfl"])
def test_the_new_file_lies_beside_the_old_one_and_its_name_is_the_output(here, format):
    before = (here / "cats.safetensors").read_bytes()
    done = run("export", "cats.safetensors", "--format", format)
    assert done.returncode == 0 and done.stdout == f"cats-{format}.safetensors\n"
    assert "2 layers, rank" in done.stderr and (here / "cats.safetensors").read_bytes() == before
    assert files(here).keys() == {"cats.safetensors", f"cats-{format}.safetensors"}
    assert ("diffusers passes over layers outside" in done.stderr) is (format in ("kohya", "bfl"))


def test_a_second_export_takes_the_next_free_name(here):
    run("export", "cats.safetensors", "--format", "kohya")
    before = files(here)
    assert run("export", "cats.safetensors", "--format", "kohya").stdout == "cats-kohya-2.safetensors\n"
    after = files(here)
    assert before.items() <= after.items() and len(after) == len(before) + 1


def test_json_tells_how_near_the_result_is(here):
    words = ("--format", "comfyui", "--dtype", "bf16", "--as", "lora", "--rank", "1", "--json")
    found = json.loads(run("export", "cats.safetensors", *words).stdout)
    assert found["file"] == "cats-comfyui.safetensors" and found["rank"] == 1 and found["dtype"] == "BF16"
    assert found["kept"].keys() == SIZES.keys() and all(0 < share < 1 for share in found["kept"].values())
    assert found["largest_difference"] < 2**-7
    assert {t.dtype for key, t in load_file("cats-comfyui.safetensors").items() if "lora" in key} == {torch.bfloat16}


def test_a_change_of_rank_is_told_for_people(here):
    done = run("export", "cats.safetensors", "--format", "diffusers", "--as", "lora", "--rank", "1")
    assert "kept of the change" in done.stderr and "%  proj_out" in done.stderr
    assert lora_file.read(Path("cats-diffusers.safetensors")).rank == 1


def test_output_may_be_a_folder_or_a_new_place(here):
    (here / "for others").mkdir()
    one = run("export", "cats.safetensors", "--format", "bfl", "--output", "for others")
    assert one.stdout == "for others/cats-bfl.safetensors\n"
    two = run("export", "cats.safetensors", "--format", "bfl", "--output", "new/place/dogs.safetensors")
    assert two.stdout == "new/place/dogs.safetensors\n" and (here / "new/place/dogs.safetensors").is_file()


def test_all_mistakes_come_at_once_and_before_torch(here):
    (here / "taken.safetensors").write_text("mine")
    program = (
        "import sys\nsys.argv = ['simpletuner', 'export', 'nowhere.safetensors', '--format', 'kohya', '--rank', '4', "
        "'--output', 'taken.safetensors']\nfrom simpletuner.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "assert not {'torch', 'safetensors'} & {*sys.modules}"
    )
    done = subprocess.run([COMMAND[0], "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in ("--rank N needs --as lora", "there is no file nowhere.safetensors", "taken.safetensors exists"):
        assert line in done.stderr
    assert "name another, such as taken-2.safetensors" in done.stderr and "3 errors" in done.stderr
    assert (here / "taken.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "--format"),
        (("--format", "webui"), "webui"),
        (("--format", "kohya", "--rank", "0", "--as", "lora"), "--rank"),
        (("--format", "kohya", "--as", "lora"), "--as lora needs --rank N"),
        (("--format", "kohya", "--output", "x.bin"), "does not end in .safetensors"),
        (("--format", "kohya", "--output", "cats.safetensors/x.safetensors"), "cats.safetensors is a file"),
    ],
)
def test_a_mistake_is_told_and_writes_nothing(here, words, line):
    before = files(here)
    done = run("export", "cats.safetensors", *words)
    assert done.returncode == 2 and line in done.stderr and files(here) == before


def test_a_file_that_another_program_writes_meanwhile_is_left_alone(here, monkeypatch):
    from simpletuner.adapters import convert

    check = convert.check

    def slow(path, *rest):
        (here / "x.safetensors").write_text("theirs")
        return check(path, *rest)

    monkeypatch.setattr(convert, "check", slow)
    done = run("export", "cats.safetensors", "--format", "kohya", "--output", "x.safetensors")
    assert done.returncode == 2 and "exists" in done.stderr and (here / "x.safetensors").read_text() == "theirs"
    assert len(files(here)) == 2


def test_what_other_commands_refuse_names_the_export_that_cures_it(here):
    run("export", "cats.safetensors", "--format", "kohya", "--output", "k.safetensors")
    done = run("generate", "--example", "nano", "--lora", "k.safetensors", "--prompt", "x")
    assert done.returncode == 2 and "simpletuner export k.safetensors --format diffusers" in done.stderr
    run("export", "k.safetensors", "--format", "diffusers", "--output", "d.safetensors")
    ours, theirs = load_file("cats.safetensors"), load_file("d.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# ---- of a checkpoint


@pytest.mark.parametrize("name", ["checkpoint-5", "5", "latest"])
def test_a_checkpoint_is_exported_into_the_folder_of_its_run(here, name):
    folder = checkpoint(here / "my run", here / "cats.safetensors")
    before = files(folder)
    done = run("checkpoint", "export", name, "--dir", "my run", "--format", "kohya")
    assert done.stdout == "my run/my run-5-kohya.safetensors\n" and files(folder) == before
    assert "lora_unet_double_blocks_0_img_attn_qkv.alpha" in load_file(done.stdout.strip())


def test_a_file_of_a_checkpoint_is_not_written_into_it(here):
    """The run deletes it some day."""
    folder = checkpoint(here / "out", here / "cats.safetensors")
    done = run("export", str(folder / "pytorch_lora_weights.safetensors"), "--format", "bfl")
    assert Path(done.stdout.strip()).parent == here / "out"


def test_a_damaged_checkpoint_is_not_exported(here):
    folder = checkpoint(here / "out", here / "cats.safetensors")
    (folder / "state/trainer.json").write_text("{}")
    done = run("checkpoint", "export", "5", "--dir", "out", "--format", "kohya")
    assert done.returncode == 7 and "is damaged" in done.stderr


def test_a_whole_model_is_no_lora(here):
    checkpoint(here / "out", None)
    done = run("checkpoint", "export", "5", "--dir", "out", "--format", "kohya")
    assert done.returncode == 2 and "holds no pytorch_lora_weights.safetensors" in done.stderr
