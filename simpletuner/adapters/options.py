"""Options of the adapter: its size, where it sits, how it starts, and the file it ends in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from simpletuner.schema import Basic, Expert, Ge, Group, Gt, Le, Lines, Meaning, When

FOR_LORA = When(model_type="lora")
FOR_LYCORIS = When(lora_type="lycoris")
FOR_ASSISTANT = When(disable_assistant_lora=False)


class Adapter(Group, title="Adapter"):
    lora_type: Annotated[
        Literal["standard", "lycoris"],
        Basic,
        FOR_LORA,
        Meaning(
            {
                "standard": "plain LoRA, loads everywhere",
                "lycoris": "LoKr and relatives: better on large sets, read by fewer tools",
            }
        ),
    ] = "standard"
    """The kind of adapter."""
    lora_rank: Annotated[int, Ge(1), Le(256), Basic, FOR_LORA] = 16
    """Capacity and file size. 1 or 4 trains fast and often suffices; 64 to 128 is hard to train on a 12B model."""
    lora_alpha: Annotated[float, Gt(0), FOR_LORA] | None = None
    """Strength is alpha / rank, so changing it is like changing the learning rate. The rank, unless set; folded into the exported weights."""  # noqa: E501
    lora_dropout: Annotated[float, Ge(0), Le(1), FOR_LORA] = 0.0
    """Drops adapter inputs at random; may help tiny sets, slows training."""
    flux_lora_module_type: Annotated[
        Literal["standard", "dora", "rslora"],
        FOR_LORA,
        Meaning(
            {
                "standard": "scales by alpha / rank",
                "dora": "learns magnitude apart from direction, slower",
                "rslora": "scales by alpha / sqrt(rank), for high ranks",
            }
        ),
    ] = "standard"
    """How the adapter's output is scaled."""
    lora_init_type: Annotated[
        Literal["default", "gaussian", "loftq", "olora", "pissa"],
        FOR_LORA,
        Meaning(
            {
                "default": "A uniform, B zero",
                "gaussian": "A normal with deviation 1 / rank, B zero",
                "loftq": "makes up for the rounding of an nf4 base; NVIDIA only",
                "olora": "orthonormal parts of the base weights, which change with it",
                "pissa": "the strongest parts of the base weights, which change with it",
            }
        ),
    ] = "default"
    """Start values; default and gaussian start at exactly the base model."""
    flux_lora_target: Annotated[
        Literal[
            "all",
            "attention",
            "mlp",
            "mmdit",
            "context",
            "context+ffs",
            "all+ffs",
            "all+ffs+embedder",
            "ai-toolkit",
            "tiny",
            "nano",
        ],  # fmt: skip # noqa: E501
        Basic,
        FOR_LORA,
        Meaning(
            {
                "all": "attention of image and text",
                "attention": "the same as all",
                "mlp": "feed-forward layers",
                "mmdit": "attention of the image",
                "context": "attention of the text",
                "context+ffs": "attention and feed-forward of the text",
                "all+ffs": "attention, feed-forward and output layers",
                "all+ffs+embedder": "the same and the image embedder",
                "ai-toolkit": "all+ffs and modulation",
                "tiny": "two output layers, single blocks 7 and 20",
                "nano": "one output layer, single block 7",
            }
        ),
    ] = "all"
    """Which layers get an adapter. More layers learn more and use more memory."""
    peft_lora_target_modules: Annotated[list[str] | None, Expert, FOR_LORA] = None
    """Endings of module names, or regular expressions for whole names, in place of the preset; a list, or a JSON file that holds one."""  # noqa: E501
    init_lora: Annotated[str | None, FOR_LORA] = None
    """Starts from the weights of an existing adapter, at step 0; to continue a run use resume_from_checkpoint."""
    lycoris_config: Annotated[dict[str, Any] | str | None, FOR_LYCORIS] = "config/lycoris_config.json"
    """The LyCORIS recipe, as a file or an object; without one, a LoKr with factor 10 on attention and 4 on feed-forward."""  # noqa: E501
    init_lokr_norm: Annotated[float | None, Ge(0), Expert, FOR_LYCORIS] = None
    """Moves a LoKr a little off its zero start, such as 1e-3; quicker to learn, no longer exactly the base model."""
    assistant_lora_path: Annotated[str | None, Expert, FOR_ASSISTANT] = None
    """A frozen adapter that is active in training only and never saved; makes schnell trainable. Unset means the flavour's."""  # noqa: E501
    assistant_lora_weight_name: Annotated[str | None, Expert, FOR_ASSISTANT] = None
    """File of the assistant in its folder or repository, where that holds several."""
    assistant_lora_strength: Annotated[float, Expert, FOR_ASSISTANT] = 1.0
    """Weight of the assistant in training; less leaves more of the few-step behaviour in the result."""
    assistant_lora_inference_strength: Annotated[float, Expert, FOR_ASSISTANT] = 0.0
    """Weight of the assistant in validation; 0 shows the result as others will use it."""
    disable_assistant_lora: bool = False
    """Trains schnell without its assistant: nothing extra to load, and results blur."""
    lora_format: Annotated[
        Literal["diffusers", "comfyui"],
        FOR_LORA,
        Meaning({"diffusers": "for diffusers, ComfyUI and Forge", "comfyui": "the same with an alpha per module"}),
    ] = "diffusers"
    """Layout of the exported file."""
    lora_metadata: Annotated[
        Literal["standard", "minimal", "none"],
        Expert,
        Meaning(
            {
                "standard": "settings of the run, no paths",
                "minimal": "without caption tags, titles and dates",
                "none": "only what loading needs",
            }
        ),
    ] = "standard"
    """How much the exported file says about the run. Never paths or names."""
    modelspec_comment: Annotated[str | None, Expert, Lines] = None
    """A note for the description in the exported file, a text or a list of lines; everyone who has the file can read it."""  # noqa: E501

    @property
    def alpha(self) -> float:
        return float(self.lora_rank if self.lora_alpha is None else self.lora_alpha)

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        root = self.lora_rank**0.5 if self.flux_lora_module_type == "rslora" else self.lora_rank
        return self.alpha / root
