"""Flux as training sees it: parts to load, images and captions to encode, and a velocity to predict.

Packing, position ids, guidance and the scale of time are private here; outside there are latents and times in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simpletuner.diffusion import draw
from simpletuner.diffusion.flow import FlowMatching
from simpletuner.diffusion.times import ShiftCurve
from simpletuner.errors import Problem
from simpletuner.kernels.attention import Attention
from simpletuner.models import Flavour
from simpletuner.models.flux import encoders, pipeline, usage
from simpletuner.models.flux.forward import Factors, FluxForward, joined
from simpletuner.models.flux.layout import image_ids, pack, text_ids, unpack
from simpletuner.models.flux.options import FluxOptions
from simpletuner.models.flux.weights import ENCODERS, Weights
from simpletuner.models.norms import follow_input
from simpletuner.models.options import Model
from simpletuner.models.stream import fill, headers
from simpletuner.modules import side_by_side, tensors
from simpletuner.protocols import Home, Quantizer, Unfilled
from simpletuner.types import Batch, Size

if TYPE_CHECKING:
    from simpletuner.models.flux.sampling import FluxEuler

GUIDANCE_TENSOR = "time_text_embed.guidance_embedder.linear_1.weight"


def _quietly() -> None:
    """The libraries' own bars would tear the program's."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _frozen(module: nn.Module, device: Any) -> Any:
    return module.requires_grad_(False).eval().to(device)


class Flux:
    """One Flux checkpoint. `dtype` is the text encoders' precision, `base_dtype` the transformer's.

    quantizers: of the parts ("transformer", "text_encoder", "text_encoder_2") whose matrices are kept in fewer bits.
    """

    def __init__(
        self,
        model: Model,
        options: FluxOptions,
        *,
        flavour: Flavour,
        dtype: torch.dtype,
        base_dtype: torch.dtype,
        vae_dtype: torch.dtype,
        seed: int,
        tiling: bool = False,
        slicing: bool = False,
        quantizers: Mapping[str, Quantizer] | None = None,
    ):
        self.model, self.options, self.flavour, self.seed = model, options, flavour, seed
        self.dtype, self.base_dtype, self.vae_dtype = dtype, base_dtype, vae_dtype
        self.tiling, self.slicing, self.quantizers = tiling, slicing, quantizers or {}
        self.weights = Weights(model, flavour)
        self.objective = FlowMatching()
        self.alignment = flavour.alignment
        self.notices: list[Problem] = []
        self.num_cut, self.longest_cut = 0, ""  # captions that did not fit, and the longest of them

    def prepare(self) -> None:
        """Finds all parts; fetches small files only. Raises what is missing or may not be read."""
        self.weights.check()
        name = self.weights.main.name
        if name != self.flavour.repository:
            message = f"weights come from {name}; defaults and behaviour follow the flavour {self.flavour.name}"
            self.notices.append(Problem(message, severity="notice", keys=("pretrained_model_name_or_path",)))

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return self.weights.config("vae")

    @property
    def latent_factor(self) -> int:
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae_config["latent_channels"]

    @property
    def text_length(self) -> int:
        """T5 tokens a caption, padded and cut."""
        return self.weights.text_length

    def shift_curve(self) -> ShiftCurve:
        """The growth of the shift with size, from the scheduler's configuration."""
        config, plain = self.weights.config("scheduler"), ShiftCurve()
        return ShiftCurve(
            config.get("base_image_seq_len", plain.base_tokens),
            config.get("max_image_seq_len", plain.max_tokens),
            config.get("base_shift", plain.base_shift),
            config.get("max_shift", plain.max_shift),
        )

    @property
    def vae_tile(self) -> int:
        return self.vae_config.get("sample_size", 32)  # as AutoencoderKL has it

    def vae_fingerprint(self, tiling: bool = False) -> str:
        return self.weights.vae_fingerprint(str(self.vae_dtype), tiling or self.tiling)

    def text_fingerprint(self) -> str:
        return self.weights.text_fingerprint(str(self.dtype), [self.kind(part) for part in ENCODERS])

    def denoiser_fingerprint(self) -> str:
        return self.weights.denoiser_fingerprint(str(self.base_dtype), self.kind("transformer"))

    def kind(self, part: str) -> str:
        """What the part's matrices are quantised to; empty if they are not."""
        return self.quantizers[part].kind if part in self.quantizers else ""

    def kept(self, part: str) -> bool:
        """Whether the cache of quantised weights has a part that has a quantiser."""
        return self.quantizers[part].kept(self.weights.fingerprint(part))

    def load_vae(self, device: Any, tiling: bool = False) -> nn.Module:
        """The VAE, frozen. `tiling` switches it on where the options do not."""
        from diffusers import AutoencoderKL

        _quietly()
        self.weights.files("vae")  # on this disk before the class looks for them
        vae = AutoencoderKL.from_pretrained(
            self.weights.folder("vae"),
            torch_dtype=self.vae_dtype,
            variant=self.weights.variant("vae"),
            use_safetensors=True,
            local_files_only=True,
        )
        if tiling or self.tiling:
            vae.enable_tiling()
        if self.slicing:
            vae.enable_slicing()
        return _frozen(vae, device)

    def load_text_encoders(self, device: Any) -> dict[str, Any]:
        from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

        _quietly()
        loaded: dict[str, Any] = {}
        parts = (
            ("clip", "text_encoder", CLIPTextModel, "tokenizer"),
            ("t5", "text_encoder_2", T5EncoderModel, "tokenizer_2"),
        )
        for name, part, kind, tokenizer in parts:
            loaded[name] = _frozen(self._encoder(part, kind, torch.device(device)), device)
            folder = self.weights.folder(tokenizer)
            loaded[f"{name}_tokenizer"] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return loaded

    def _encoder(self, part: str, kind: Any, device: torch.device) -> nn.Module:
        files, folder = self.weights.files(part), self.weights.folder(part)
        if part not in self.quantizers:
            return kind.from_pretrained(
                folder,
                dtype=self.dtype,
                variant=self.weights.variant(part),
                use_safetensors=True,
                local_files_only=True,
            )
        module = encoders.unfilled(kind, folder)
        names = encoders.names(tensors(module), headers(files))
        self._pack(part, module, device, partial(fill, module, files, dtype=self.dtype, names=names))
        return module

    def _pack(
        self,
        part: str,
        module: nn.Module,
        device: torch.device,
        fill: Callable[..., None],
        home: Home | None = None,
        open: Callable[[Any], nn.Module] | None = None,
    ) -> None:
        """Fills the module with packed weights; the arguments are those of the role."""
        quantizer = self.quantizers[part]
        quantizer.load(Unfilled(part, module, self.weights.fingerprint(part), fill, open), device, home)
        self.notices += quantizer.notices
        quantizer.notices.clear()

    def load_denoiser(self, device: Any, home: Home | None = None) -> nn.Module:
        """The transformer in base_dtype or quantised, frozen. Whether it takes guidance the tensors found decide.

        home: where each tensor or packed layer stays, by its name; on the device unless it is given.
        """
        from diffusers import FluxTransformer2DModel

        files = self.weights.files("transformer")
        config = dict(FluxTransformer2DModel.load_config(self.weights.folder("transformer"), local_files_only=True))
        config["guidance_embeds"] = GUIDANCE_TENSOR in headers(files)
        if config["guidance_embeds"] != self.flavour.guidance:
            has = "has a" if config["guidance_embeds"] else "has no"
            message = f"this transformer {has} guidance input, unlike flavour {self.flavour.name}: the weights decide"
            self.notices.append(Problem(message, severity="notice", keys=("model_flavour",)))
        with torch.device("meta"):
            denoiser = FluxTransformer2DModel.from_config(config)
        for paths in joined(denoiser):
            side_by_side(denoiser, paths)
        read = partial(fill, denoiser, files, dtype=self.base_dtype)
        if "transformer" in self.quantizers:
            open = partial(self._opened, FluxTransformer2DModel)
            self._pack("transformer", denoiser, torch.device(device), read, home=home, open=open)
        else:
            read(device=torch.device(device), home=home)
        if self.base_dtype != self.dtype:
            follow_input(denoiser)
        return denoiser.requires_grad_(False).eval()

    def _opened(self, kind: Any, quantization: Any) -> nn.Module:
        """The transformer as diffusers loads it, with a quantization configuration of its own."""
        return kind.from_pretrained(
            self.weights.folder("transformer"),
            quantization_config=quantization,
            torch_dtype=self.base_dtype,
            variant=self.weights.variant("transformer"),
            use_safetensors=True,
            local_files_only=True,
        )

    @torch.no_grad()
    def encode_images(self, vae: Any, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """(B, 3, h, w) in [-1, 1] -> (B, C, h/8, w/8) fp32, shifted and scaled. noise None: the posterior's mode."""
        weight = next(vae.parameters())
        posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
        z = posterior.mean.float()
        if noise is not None:
            z = z + posterior.std.float() * noise.to(z.device, torch.float32)
        return (z - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def encode_text(self, encoders: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Tensor]:
        """t5 (B, L, D), t5_mask (B, L) bool, clip (B, P). Neither encoder sees a mask: padding is encoded too, as in training of the base."""  # noqa: E501
        texts = list(captions)
        self._count_cut(encoders["t5_tokenizer"], texts)
        clip, t5 = encoders["clip"], encoders["t5"]
        clip_ids = self._tokens(encoders["clip_tokenizer"], texts, clip.config.max_position_embeddings)["input_ids"]
        t5_tokens = self._tokens(encoders["t5_tokenizer"], texts, self.text_length)
        mask = t5_tokens["attention_mask"].bool()  # (B, L)
        pooled = clip(clip_ids.to(clip.device)).pooler_output  # (B, P)
        hidden = t5(t5_tokens["input_ids"].to(t5.device))[0]  # (B, L, D)
        if self.model.t5_padding == "zero":
            hidden = hidden * mask.to(hidden.device).unsqueeze(-1)
        return {"t5": hidden, "t5_mask": mask.to(hidden.device), "clip": pooled}

    @staticmethod
    def _tokens(tokenizer: Any, texts: list[str], length: int) -> Any:
        return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")

    def _count_cut(self, tokenizer: Any, texts: list[str]) -> None:
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        cut = [text for text, length in zip(texts, lengths, strict=True) if length > self.text_length]
        self.num_cut += len(cut)
        self.longest_cut = max([self.longest_cut, *cut], key=len)

    def shift_tokens(self, height: int, width: int) -> int:
        """Image tokens of a latent of height x width."""
        return (height // 2) * (width // 2)

    def layers(self) -> dict[str, tuple[int, ...]]:
        """(out, in) of the transformer's linear layers by name, from the headers of its weight files."""
        found = headers(self.weights.files("transformer"))
        return {name.removesuffix(".weight"): shape for name, [(_, shape), *_] in found.items() if len(shape) == 2}

    def blocks(self, denoiser: Any) -> list[nn.Module]:
        """Double-stream blocks, then single-stream blocks."""
        return [*denoiser.transformer_blocks, *denoiser.single_transformer_blocks]

    def export_facts(self) -> dict[str, Any]:
        """What an exported file says about the family's own settings; see the adapter's metadata."""
        random = self.options.flux_guidance_mode == "random-range"
        span = f"{self.options.flux_guidance_min:g}-{self.options.flux_guidance_max:g}"
        return {"guidance": span if random else self.options.flux_guidance_value}

    def pipeline_files(self) -> dict[str, Path | str]:
        """Everything but the transformer of a folder that FluxPipeline opens: files of the base, or texts to write."""
        return pipeline.files(self.weights)

    def opening(self, whole: Path | None = None) -> list[str]:
        """Lines of Python from nothing to a `pipeline` of diffusers: of the base, or of the folder of a whole model."""
        return usage.opening(self.weights, str(self.base_dtype).removeprefix("torch."), whole)

    def picture(self, prompt: str, size: Size, *, steps: int, guidance: float, real: float) -> str:
        """The line of Python that makes a picture with that `pipeline`."""
        length = self.text_length
        return usage.picture(prompt, size, steps=steps, guidance=guidance, real=real, length=length)

    def guidance(self, numbers: Sequence[int]) -> list[float]:
        """What each sample of the run is told as its guidance."""
        if self.options.flux_guidance_mode == "constant":
            return [self.options.flux_guidance_value] * len(numbers)
        low, high = self.options.flux_guidance_min, self.options.flux_guidance_max
        return [low + (high - low) * draw.uniform("guidance", self.seed, number) for number in numbers]

    def conditions(self, batch: Batch) -> dict[str, Tensor]:
        """guidance (B,) fp32, on the CPU: what the samples are told besides their captions."""
        numbers = batch.numbers or range(len(batch.latents))
        return {"guidance": torch.tensor(self.guidance(numbers), dtype=torch.float32)}

    def functional(self, denoiser: Any, low_rank: Factors, attention: Attention) -> FluxForward:
        """Makes the transformer run block by block through the runners of what is returned."""
        denoiser.forward = FluxForward(denoiser, low_rank, attention)
        return denoiser.forward

    def predict(self, denoiser: Any, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The velocity at x_t (B, C, H, W) and t (B,) in [0, 1], in the transformer's precision.

        Nothing in here comes from the host: a CUDA graph may contain it. `conditions` has been added to batch.text.
        """
        return self.velocity(denoiser, x_t, t, batch.text, batch.text["guidance"])

    def velocity(self, denoiser: Any, x_t: Tensor, t: Tensor, text: Mapping[str, Tensor], guidance: Tensor) -> Tensor:
        """One pass of the transformer over latents. guidance: (B,) fp32, unused by a model without that input."""
        device = x_t.device
        height, width = x_t.shape[-2:]
        told = guidance.to(device) if denoiser.config.guidance_embeds else None
        t5 = text["t5"].to(device, self.base_dtype)  # (B, L, D)
        tokens = denoiser(
            hidden_states=pack(x_t).to(self.base_dtype),
            encoder_hidden_states=t5,
            pooled_projections=text["clip"].to(device, self.base_dtype),
            timestep=t.to(device, torch.float32),  # the model multiplies by 1000 itself
            guidance=told,
            img_ids=image_ids(height, width, device),
            txt_ids=text_ids(t5.shape[1], device),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def sampler(self, denoiser: Any, within: Callable[[], AbstractContextManager[None]] = nullcontext) -> FluxEuler:
        """within: what surrounds the making of each picture's latents."""
        from simpletuner.models.flux.sampling import FluxEuler

        return FluxEuler(self, denoiser, within)
