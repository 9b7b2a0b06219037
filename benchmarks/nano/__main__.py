"""Makes nano: `python -m benchmarks.nano --work DIR --out DIR`, after `python -m benchmarks.nano.pack`.

Three parts, each skipped if its result lies in --work: the VAE (--vae-seconds), the text encoders together with a first
transformer (--joint-seconds), and the transformer once more in the product's own trainer (--steps).

--out gets the FluxPipeline folder in fp16, `samples.png` and `make.log`.
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from diffusers import FluxPipeline

from benchmarks.nano import joint, measure, transformer, vae
from benchmarks.nano.pictures import Art

log = logging.getLogger("nano")


def load(folder: Path, device: torch.device) -> FluxPipeline:
    """A saved pipeline as a user loads it, in fp32."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: FluxPipeline, folder: Path) -> None:
    """Stores fp16 weights that load as fp32 where no dtype is asked for, as the CPU needs them."""
    for part in (pipe, pipe.vae, pipe.transformer):
        part.register_to_config(_name_or_path="nano")  # or the place it was loaded from would be saved
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    # diffusers loads its parts as fp32 anyway; transformers loads what the config says.
    for part in ("text_encoder", "text_encoder_2"):
        path = folder / part / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files for their owner only


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".nano"), help="what benchmarks.nano.pack wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for what the parts hand on")
    parser.add_argument("--out", type=Path, required=True, help="folder for pipeline, samples and log")
    parser.add_argument("--vae-seconds", type=float, default=200)
    parser.add_argument("--joint-seconds", type=float, default=260)
    parser.add_argument(
        "--steps", type=int, default=transformer.NUM_STEPS, help="of the product's trainer; 0: leave out"
    )
    return parser.parse_args()


def main() -> None:
    options = read_options()
    for folder in (options.work, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(options.out / "make.log")]
    logging.basicConfig(format="%(relativeCreated)7d ms %(message)s", handlers=handlers)
    log.setLevel(logging.INFO)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log.info("torch %s on %s", torch.__version__, torch.cuda.get_device_name() if device.type == "cuda" else "CPU")
    art = Art.read(options.data, device)
    log.info("%d subjects, %d held out", len(art.subjects), len(art.held_out["flat"]))

    if not (options.work / "vae/config.json").exists():
        vae.make(options.work / "vae", art, options.vae_seconds)
    trained = vae.load(options.work / "vae", device)
    vae.log_psnr(trained, art)

    first = options.work / "first"
    if not (first / "model_index.json").exists():
        save(joint.make(trained, art, device, options.joint_seconds), first)
    measure.report(load(first, device), art, device, options.out / "samples_first.png")
    result = first
    if options.steps:
        result = transformer.train(options.work / "transformer", first, art, options.steps)
    save(load(result, torch.device("cpu")), options.out / "model")
    log.info("saved: %.2f MB", sum(p.stat().st_size for p in (options.out / "model").rglob("*") if p.is_file()) / 1e6)
    measure.report(load(options.out / "model", device), art, device, options.out / "samples.png")


if __name__ == "__main__":
    main()
