"""How much memory a run takes, phase by phase: a formula over the model's sizes, checked against measured peaks.

    training = base + adapter x (weight + gradient + optimizer state) + activations + workspace

docs/memory.md explains each term; benchmarks/results/memory.json holds the peaks it is tested against. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from simpletuner.adapters import targets
from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.data.options import Data
from simpletuner.memory import budget
from simpletuner.memory.moves import moves
from simpletuner.memory.options import Memory, Offload
from simpletuner.models import FamilyRecord, families
from simpletuner.models.options import Model, ModelMemory
from simpletuner.models.shapes import Shapes, Stack
from simpletuner.optim.arguments import arguments
from simpletuner.optim.options import Optimizer
from simpletuner.optim.table import state_bytes
from simpletuner.quantization.kinds import KINDS as KINDS_OF_WEIGHTS
from simpletuner.quantization.kinds import packed
from simpletuner.rules.speed import whole_modules
from simpletuner.training.options import Speed, Training
from simpletuner.validation import sizes
from simpletuner.validation.options import Validation

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "no": 4, "default": 2}
MIB = 2**20
# Measured on an H100 with torch 2.11 (benchmarks/memory.py):
CONTEXT = 800 * MIB  # CUDA's own, its libraries' kernels and their workspaces
SLACK = 0.03  # of everything but the base: what the allocator holds in pieces that fit nothing
PROCESS = 1800 * MIB  # RAM of the process with torch and its libraries; pages of mapped weight files do not count
BACKWARD = 24.0  # units that the backward pass of one block needs while it runs, beside what was kept
COMPILED = 0.9  # of what a block keeps: compiled, it makes cheap tensors again (benchmarks/step.py)
# activation_memory_budget from which -> the share that is kept: the compiler goes by steps, and below them by the
# budget itself (counted in what it keeps of small blocks).
KEPT = ((1.0, 1.0), (0.96, 0.88), (0.75, 0.62), (0.56, 0.55))
SAMPLING = 16.0  # units in flight in one pass without gradients
ENCODER_LAYERS = 24  # of the largest text encoder, all alike
ENCODE, DECODE = 8.2, 17.0  # tensors of the VAE's full-size channels in flight, for each pixel


@dataclass(frozen=True)
class Phase:
    """One part of a run: what lies on the device and in RAM at its peak, in bytes by name."""

    name: str
    vram: Mapping[str, int]
    ram: Mapping[str, int]

    @property
    def vram_bytes(self) -> int:
        return sum(self.vram.values())

    @property
    def ram_bytes(self) -> int:
        return sum(self.ram.values())


@dataclass(frozen=True)
class Moved:
    """Blocks of the transformer that wait in RAM, or on disk, and visit the device."""

    stay: int  # blocks
    move: int
    waiting_bytes: int
    slot_bytes: int  # of the device, that they take turns in
    bus_bytes: int  # copied to the device in one step
    on_disk: bool


def estimate(config: Config, buckets: Iterable[tuple[int, int]]) -> tuple[Phase, ...]:
    """The phases of a run on a GPU. buckets: (height, width) in pixels of the batches; the largest decides."""
    family = families()[config[Model].model_family]
    shapes = family.shapes(config[Model])
    most = max(((height, width) for height, width in buckets), key=lambda size: size[0] * size[1], default=None)
    phases = [_text_phase(config, shapes)]
    if most:
        phases += [_image_phase(config, shapes, most), _training_phase(config, family, shapes, most)]
    if not config[Validation].validation_disable:
        phases.append(_validation_phase(config, family, shapes))
    return tuple(phases)


def trained(config: Config, family: FamilyRecord, shapes: Shapes) -> list[str]:
    """Paths of the linear layers that get a gradient: those of the adapter, or all."""
    if not KINDS[config[Model].model_type].base_stays:
        return list(shapes.layers)
    adapter = config[Adapter]
    names = family.targets(adapter.flux_lora_target, adapter.peft_lora_target_modules)
    return targets.find(shapes.layers, names)


def adapter_weights(config: Config, family: FamilyRecord, shapes: Shapes) -> int:
    """Numbers that are trained: rank x (in + out) of every adapted layer, or the whole transformer."""
    return sum(trained_sizes(config, family, shapes))


def trained_sizes(config: Config, family: FamilyRecord, shapes: Shapes) -> list[int]:
    """Numbers in each trained tensor: two matrices of an adapted layer, or the layers of the transformer."""
    if not KINDS[config[Model].model_type].base_stays:
        layers = [out * into for out, into in shapes.layers.values()]
        return [*layers, shapes.num_weights - sum(layers)]
    rank = config[Adapter].lora_rank
    return [rank * size for path in trained(config, family, shapes) for size in shapes.layers[path]]


def base_bytes(config: Config, shapes: Shapes) -> int:
    """The transformer as it is kept: matrices in blocks in their kind, the rest in the base's precision."""
    each = BYTES[config[Memory].base_dtype(config[Speed].mixed_precision)]
    in_fewer_bits = sum(quantised_layers(config, shapes).values())
    if not in_fewer_bits:
        return shapes.num_weights * each
    kind = KINDS_OF_WEIGHTS[config[Memory].base_model_precision]
    return round(in_fewer_bits * kind.num_bytes) + (shapes.num_weights - in_fewer_bits) * each


def quantised_layers(config: Config, shapes: Shapes) -> dict[str, int]:
    """Path -> weights of each matrix of the transformer that is packed; none if the base is not quantised."""
    if not config[Memory].quantised:
        return {}
    kind = KINDS_OF_WEIGHTS[config[Memory].base_model_precision]
    keep = families()[config[Model].model_family].keep_precise
    return {path: out * into for path, (out, into) in shapes.layers.items() if packed(kind, path, into, keep)}


def block_bytes(config: Config, shapes: Shapes) -> list[int]:
    """The matrices of each block as they are kept, in the order in which blocks run."""
    each = BYTES[config[Memory].base_dtype(config[Speed].mixed_precision)]
    found = dict.fromkeys(shapes.block_paths(), 0.0)
    in_fewer_bits = quantised_layers(config, shapes)
    small = KINDS_OF_WEIGHTS[config[Memory].base_model_precision].num_bytes if in_fewer_bits else each
    for path, (out, into) in shapes.layers.items():
        block = ".".join(path.split(".")[:2])
        if block in found:
            found[block] += out * into * (small if path in in_fewer_bits else each)
    return [round(size) for size in found.values()]


def moved(config: Config, shapes: Shapes) -> Moved | None:
    """The blocks that wait elsewhere; None if all are on the device."""
    found = moves(config[Offload], shapes.num_blocks)
    if not found:
        return None
    sizes = block_bytes(config, shapes)
    return Moved(
        stay=shapes.num_blocks - len(found.chosen),
        move=len(found.chosen),
        waiting_bytes=sum(sizes[index] for index in found.chosen),
        slot_bytes=budget.ring_bytes(sizes, found.chosen, found.depth),
        bus_bytes=budget.transferred_bytes(sizes, found.chosen, found.depth),
        on_disk=found.folder is not None,
    )


def offloaded(config: Config, shapes: Shapes) -> tuple[Path, int] | None:
    """The folder where blocks wait on disk, and their bytes."""
    folder, found = moves(config[Offload], shapes.num_blocks).folder, moved(config, shapes)
    return (folder, found.waiting_bytes) if folder and found else None


def base_terms(config: Config, shapes: Shapes) -> tuple[dict[str, int], dict[str, int]]:
    """(on the device, in RAM): the transformer with what of it waits elsewhere."""
    found, base = moved(config, shapes), base_bytes(config, shapes)
    if found is None:
        return {"base": base}, {}
    ram = {} if found.on_disk else {"waiting blocks": found.waiting_bytes}
    return {"base": base - found.waiting_bytes, "slots": found.slot_bytes}, ram


def encoder_bytes(config: Config, shapes: Shapes) -> list[int]:
    """Of each text encoder as it is kept while captions are encoded."""
    each, kinds = BYTES[config[Speed].mixed_precision], config[Memory].text_kinds
    return [
        round(linear * (KINDS_OF_WEIGHTS[kind].num_bytes if kind else each)) + rest * each
        for kind, (linear, rest) in zip(kinds, shapes.text_encoders, strict=True)
    ]


def adapter_bytes(config: Config, family: FamilyRecord, shapes: Shapes) -> int:
    """Trained weights besides the base, their gradients and the optimizer's state."""
    count, each = adapter_weights(config, family, shapes), trained_bytes(config)
    settings, sizes = config[Optimizer], trained_sizes(config, family, shapes)
    state = state_bytes(settings.optimizer, sizes, each, arguments(settings.optimizer_config))
    if not KINDS[config[Model].model_type].base_stays:
        return count * each + state  # the weights are the base
    copy = 2 if each == 4 and config[Speed].mixed_precision != "no" else 0  # autocast keeps a 16-bit one
    return count * (each * 2 + copy) + state


def trained_bytes(config: Config) -> int:
    """Of one trained number: adamw_bf16 keeps 16 bits, the others 32; without an adapter those of the base."""
    if not KINDS[config[Model].model_type].base_stays:
        return BYTES[config[Memory].base_dtype(config[Speed].mixed_precision)]
    return 2 if config[Optimizer].optimizer == "adamw_bf16" else 4


def result_bytes(config: Config, family: FamilyRecord, shapes: Shapes) -> int:
    """What is trained, as it is kept: about what a run leaves."""
    return adapter_weights(config, family, shapes) * trained_bytes(config)


def activation_bytes(config: Config, shapes: Shapes, paths: Iterable[str], size: tuple[int, int]) -> int:
    """What the forward pass keeps for the backward pass, and what that needs in flight."""
    unit = _unit(config, shapes, size) * config[Training].train_batch_size
    memory, adapted, away = config[Memory], set(paths), moves(config[Offload], shapes.num_blocks).chosen
    parked = memory.gradient_checkpointing_backend == "offload"
    share = _kept_share(config)
    blocks = [(stack, index) for stack in shapes.stacks for index in range(stack.count)]
    units, begun, largest = 0.0, False, 0.0
    for number, (stack, index) in enumerate(blocks):
        kept = _kept(stack, index, adapted)
        begun = begun or any(f"{stack.name}.{index}.{name}" in adapted for name in stack.reads)
        begun = begun or (number == 0 and any("." not in path or "embed" in path for path in adapted))
        if not begun:  # nothing before the first trained layer gets a gradient
            continue
        if number in away or (memory.gradient_checkpointing and number % memory.gradient_checkpointing_interval == 0):
            # of parked ones, one is on its way while another is used; a block's own inputs are in flight anyway
            units, largest = max(units, stack.entering) if parked else units + stack.entering, max(largest, kept)
        else:
            units += share * kept
    return round((units + largest + BACKWARD) * unit)


def _kept_share(config: Config) -> float:
    """Of what blocks would keep as they are written."""
    if not compiled(config):
        return 1.0
    asked = config[Memory].activation_memory_budget
    return COMPILED * next((kept for least, kept in KEPT if asked >= least), asked)


def compiled(config: Config) -> bool:
    """Whether blocks are compiled on a GPU: those of an adapter that runs without the modules."""
    return config.applies("activation_memory_budget") and not whole_modules(config)


def parked_bytes(config: Config, shapes: Shapes, size: tuple[int, int]) -> int:
    """Inputs of recomputed blocks that wait in RAM, at most."""
    memory, away = config[Memory], moves(config[Offload], shapes.num_blocks).chosen
    if memory.gradient_checkpointing_backend != "offload":
        return 0
    entering = [stack.entering for stack in shapes.stacks for _ in range(stack.count)]
    every = memory.gradient_checkpointing_interval
    again = {index for index in range(len(entering)) if memory.gradient_checkpointing and index % every == 0} | away
    units = sum(entering[index] for index in again)
    return round(units * _unit(config, shapes, size) * config[Training].train_batch_size)


def _kept(stack: Stack, index: int, adapted: set[str]) -> float:
    read = {tensor for name, tensor in stack.reads.items() if f"{stack.name}.{index}.{name}" in adapted}
    return stack.kept + sum(stack.units[tensor] for tensor in read)


def _unit(config: Config, shapes: Shapes, size: tuple[int, int]) -> int:
    """Bytes of one activation of the model's width for every token of one picture."""
    return shapes.tokens(*size) * shapes.width * BYTES[config[Speed].mixed_precision]


def _training_phase(config: Config, family: FamilyRecord, shapes: Shapes, size: tuple[int, int]) -> Phase:
    activations = activation_bytes(config, shapes, trained(config, family, shapes), size)
    state = adapter_bytes(config, family, shapes)
    base, waiting = base_terms(config, shapes)
    vram = {
        **base,
        "adapter and optimizer": state,
        "activations": activations,
        "workspace": CONTEXT + unpacked_bytes(config, shapes) + round(SLACK * (activations + state)),
    }
    if parked := parked_bytes(config, shapes, size):
        waiting = waiting | {"parked activations": parked}
    return Phase("training", vram, {"program": PROCESS, "one tensor": _largest(config, shapes), **waiting})


def _validation_phase(config: Config, family: FamilyRecord, shapes: Shapes) -> Phase:
    """The training model makes the samples; the VAE is loaded beside it to decode them, one at a time."""
    wanted, _ = sizes.parse(config[Validation].validation_resolution)
    height, width = max(((size.height, size.width) for size in wanted), key=lambda s: s[0] * s[1], default=(1024, 1024))
    sampling = round(SAMPLING * _unit(config, shapes, (height, width)))
    decoding = vae_bytes(config, shapes) + vae_activations(config, shapes, height * width, DECODE)
    base, waiting = base_terms(config, shapes)
    if config[Offload].enable_model_cpu_offload:  # the transformer is away while the VAE decodes
        waiting = waiting | {"base": base["base"]}
        decoding -= base["base"]
    vram = {
        **base,
        "adapter and optimizer": adapter_bytes(config, family, shapes),
        "sampling": max(sampling, decoding),
        "workspace": CONTEXT + unpacked_bytes(config, shapes),
    }
    return Phase("validation", vram, {"program": PROCESS, "vae": vae_bytes(config, shapes), **waiting})


def _text_phase(config: Config, shapes: Shapes) -> Phase:
    kept, waiting = encoder_bytes(config, shapes), {}
    if config[Offload].enable_group_offload and config[Offload].group_offload_text_encoder:
        linears = [linear / (linear + rest) for linear, rest in shapes.text_encoders]
        waiting = {"text encoders": round(sum(size * part for size, part in zip(kept, linears, strict=True)))}
        depth = moves(config[Offload], ENCODER_LAYERS).depth
        kept = [
            round(size * (1 - part + part * depth / ENCODER_LAYERS)) for size, part in zip(kept, linears, strict=True)
        ]
    elif config[Offload].offload_during_startup:
        waiting = {"text encoders": sum(kept)}
    return Phase("text cache", {"text encoders": sum(kept), "workspace": CONTEXT}, {"program": PROCESS, **waiting})


def _image_phase(config: Config, shapes: Shapes, size: tuple[int, int]) -> Phase:
    pixels = size[0] * size[1] * config[Data].vae_batch_size
    vram = {
        "vae": vae_bytes(config, shapes),
        "activations": vae_activations(config, shapes, pixels, ENCODE),
        "workspace": CONTEXT,
    }
    return Phase("image cache", vram, {"program": PROCESS, "vae": vae_bytes(config, shapes)})


def vae_bytes(config: Config, shapes: Shapes) -> int:
    return shapes.vae * BYTES[config[Model].vae_dtype]


def vae_activations(config: Config, shapes: Shapes, pixels: int, tensors: float) -> int:
    """What encoding or decoding holds at full size; one image at a time with slicing, one tile with tiling."""
    parts, data = config[ModelMemory], config[Data]
    if parts.vae_enable_slicing and tensors == ENCODE:
        pixels //= data.vae_batch_size
    if parts.vae_enable_tiling:
        pixels = min(pixels, 512 * 512 * data.vae_batch_size)
    return round(tensors * pixels * shapes.vae_channels * BYTES[config[Model].vae_dtype])


def unpacked_bytes(config: Config, shapes: Shapes) -> int:
    """The largest packed matrix as it is multiplied with: one at a time."""
    return max(quantised_layers(config, shapes).values(), default=0) * BYTES[config[Speed].mixed_precision]


def _largest(config: Config, shapes: Shapes) -> int:
    return max(out * into for out, into in shapes.layers.values()) * 4  # read as it lies in the file, at most fp32
