"""Options of the data part: global defaults, one image dataset, one text cache; and the keys that are not taken yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from simpletuner.schema import Basic, Expert, Ge, Group, Gt, Le, Meaning, Unit, When

ResolutionType = Literal["pixel_area", "pixel", "area"]
CaptionStrategy = Literal["filename", "textfile", "instanceprompt", "parquet", "jsonl", "csv", "huggingface"]
FOR_KONTEXT = When(model_flavour="kontext")


class PerCache(Group, title="Data"):
    """What every cache may set for itself."""

    write_batch_size: Annotated[int, Ge(1), Expert] = 128
    """Cache items written between two folder syncs; more is faster on slow disks and redoes more after a power cut."""


class PerTextCache(PerCache, title="Data"):
    """What a text cache may set, with the global key as default."""

    text_encoder_batch_size: Annotated[int, Ge(1), Expert] = 1
    """Captions encoded at once; more is faster and takes more memory."""


class PerImageSet(PerCache, title="Data"):
    """What an image dataset may set, with the global key as default."""

    resolution: Annotated[float, Ge(0), Basic] = 1024
    """Training size in the unit of resolution_type; 512 is about three times faster than 1024 and keeps less detail."""
    resolution_type: Annotated[
        ResolutionType,
        Meaning(
            {
                "pixel_area": "edge of a square of equal area",
                "pixel": "shorter edge in pixels",
                "area": "megapixels",
            }
        ),
    ] = "pixel_area"
    """Unit of resolution and of the other sizes."""
    minimum_image_size: Annotated[float, Ge(0)] | None = None
    """Smaller images are left out and listed; 0 keeps all."""
    maximum_image_size: Annotated[float, Ge(0)] | None = None
    """Larger images are reduced to target_downsample_size before cropping, so that a crop still shows the scene."""
    target_downsample_size: Annotated[float, Ge(0)] | None = None
    """Size that images above maximum_image_size are reduced to; given together with it or not at all."""
    max_upscale_threshold: Annotated[float, Ge(0), Le(1), Expert] | None = None
    """Leaves out images that would have to grow by more than this share; they are listed."""
    caption_strategy: Annotated[
        CaptionStrategy,
        Basic,
        Meaning(
            {
                "filename": "the file name, with _ read as a space",
                "textfile": "a text file beside the image; each line is one alternative",
                "instanceprompt": "instance_prompt for every image",
                "parquet": "a column of a parquet table",
                "jsonl": "a field of each line of a .jsonl file",
                "csv": "a column of a CSV table",
                "huggingface": "a column of a data set on the hub",
            }
        ),
    ] = "filename"
    """Where captions come from."""
    instance_prompt: Annotated[str, Basic] | None = None
    """The one caption of instanceprompt, or the words put in front of each caption."""
    prepend_instance_prompt: bool = False
    """Puts the instance prompt before each caption that does not hold it yet."""
    only_instance_prompt: bool = False
    """Uses the instance prompt in place of each caption."""
    disable_multiline_split: Annotated[bool, Expert] = False
    """Reads a text file as one caption with its line breaks; otherwise each line is an alternative."""
    caption_dropout_probability: Annotated[float, Ge(0), Le(1), Basic] = 0.1
    """Share of samples trained without a caption; keeps guidance working and weakens the trigger a little."""
    cache_dir_vae: Path | None = None
    """Where latents are kept; unset means {output_dir}/cache/vae/{family}/{id}. Runs may share a folder."""
    vae_batch_size: Annotated[int, Ge(1)] = 4
    """Images encoded at once; more is faster and takes more memory. Halved when memory runs out."""
    image_processing_batch_size: Annotated[int, Ge(1), Expert] = 32
    """Images decoded ahead of the encoder; more hides slow disks and takes more RAM."""
    max_workers: Annotated[int, Ge(1), Expert] = 32
    """Threads for reading and decoding; never more than twice the cores."""
    metadata_update_interval: Annotated[float, Ge(60), Unit("seconds"), Expert] = 3600
    """Longest time between two saves of the index while scanning; shorter redoes less after a crash."""
    aws_max_pool_connections: Annotated[int, Ge(1), Expert] = 128
    """Open connections to a bucket; more is faster until the provider slows you down."""


class Data(PerImageSet, PerTextCache, title="Data"):
    """Defaults for every dataset; a key inside the dataset file wins."""

    data_backend_config: Annotated[Path, Basic] = Path("config/multidatabackend.json")
    """The dataset file: a list of image sets and the text cache."""
    aspect_bucket_rounding: Annotated[int, Ge(1), Le(9), Expert] = 2
    """Decimals kept of the aspect ratio when images are grouped; fewer decimals, fewer and fuller groups."""
    data_backend_sampling: Literal["auto-weighting", "uniform"] = "auto-weighting"
    """Datasets are drawn by size, or all equally often; it shapes the order, every image is met either way."""
    conditioning_multidataset_sampling: Annotated[
        Literal["random", "combined"],
        Expert,
        FOR_KONTEXT,
        Meaning({"random": "one set per micro-batch", "combined": "all sets at once: longer sequences, more memory"}),
    ] = "random"
    """How several sets of reference images take part."""
    allow_dataset_oversubscription: bool = False
    """Raises repeats of a dataset that is smaller than one step to the smallest value that works, and says so."""
    cache_dir_text: Path | None = None
    """Where text embeddings are kept; unset means {output_dir}/cache/text/{family}. Runs may share a folder."""
    parquet_caption_column: str | None = None
    """Column of a parquet table that holds the captions; without it the table has no words to offer."""
    parquet_filename_column: str | None = None
    """Column of a parquet table that names the images, by which its rows are matched."""
    vae_cache_ondemand: Annotated[bool, Expert] = False
    """Encodes images when they first come up; training starts at once, keeps the VAE loaded and has slower steps."""
    vae_cache_disable: Annotated[bool, Expert] = False
    """Encodes images at every use and writes no latents; saves disk and costs time in each step."""
    text_cache_ondemand: Annotated[bool, Expert] = False
    """Encodes captions when they first come up; starts at once, keeps T5 loaded and has slower steps."""
    text_cache_disable: Annotated[bool, Expert] = False
    """Encodes captions at every use and writes no embeddings; saves disk, keeps T5 loaded and costs time."""
    vae_cache_scan_behaviour: Annotated[
        Literal["recreate", "sync"],
        Expert,
        Meaning({"recreate": "encodes the image again", "sync": "leaves the image out of this run and lists it"}),
    ] = "recreate"
    """What happens to a latent that turns out damaged or of another shape than planned."""
    skip_file_discovery: Annotated[
        list[Literal["aspect", "vae", "text", "metadata"]],
        Expert,
        Meaning(
            {
                "aspect": "takes sizes and buckets from the index",
                "vae": "takes the latents for complete",
                "text": "takes the embeddings for complete",
                "metadata": "takes the list of files from the index",
            }
        ),
    ] = []
    """Stages that trust the index of the last run; a quicker start on very large sets, blind to changed files."""
    read_batch_size: Annotated[int, Ge(1), Expert] = 25
    """Files read ahead; more hides slow storage and takes more RAM."""
    image_pixel_limit: Annotated[int, Ge(1), Unit("px"), Expert] = 120_000_000
    """Larger images are refused and listed, as protection against decompression bombs."""
    dataloader_prefetch: Annotated[bool, Expert] = True
    """Reads batches ahead of the step on threads; off saves a little RAM and may make the step wait."""
    dataloader_prefetch_qlen: Annotated[int, Ge(1), Expert, When(dataloader_prefetch=True)] = 10
    """How many batches are read ahead; more evens out slow disks and takes RAM."""
    debug_aspect_buckets: Annotated[bool, Expert] = False
    """Logs each decision about size, crop and bucket: long logs that explain why an image looks as it does."""
    debug_dataset_loader: Annotated[bool, Expert] = False
    """Logs what the loader reads, waits for and hands over; long logs for slow starts and stalls."""
    print_filenames: Annotated[bool, Expert] = False
    """Logs the files of each batch, so that a bad step leads to its images."""
    print_sampler_statistics: Annotated[bool, Expert] = False
    """Logs how often each dataset was drawn, to see whether repeats and probabilities do what you meant."""


class ImageEntry(PerImageSet, title="Image dataset"):
    """One image dataset of the dataset file."""

    id: str
    """Name of the dataset in indexes, events, checkpoints and messages."""
    type: Annotated[
        Literal["local", "aws"],
        Meaning({"local": "a folder: instance_data_dir", "aws": "a bucket of S3 or of its like: aws_bucket_name"}),
    ]
    """Where the images are."""
    dataset_type: Literal["image"] = "image"
    """Role of the entry."""
    disabled: bool = False
    """Checks the entry for spelling, then leaves it out."""
    instance_data_dir: Path | None = None
    """Root of the images, read recursively; nothing is ever written there. Required with type local."""
    aws_bucket_name: str | None = None
    """Bucket of the images; nothing is ever written there. Required with type aws."""
    aws_data_prefix: str = ""
    """Folder in the bucket, read recursively; unset means all of it."""
    aws_region_name: str | None = None
    """Region of the bucket; unset means the environment's."""
    aws_endpoint_url: str | None = None
    """Address of another provider than AWS, such as https://HOST:PORT."""
    aws_access_key_id: Annotated[str | None, Field(repr=False)] = None
    """Who reads the bucket. Better left to the environment (AWS_ACCESS_KEY_ID) or written as {env:NAME}."""
    aws_secret_access_key: Annotated[str | None, Field(repr=False)] = None
    """Its secret, likewise; it is never shown and never written anywhere."""
    minimum_aspect_ratio: Annotated[float, Ge(0)] | None = None
    """Images with a smaller width/height are left out and listed."""
    maximum_aspect_ratio: Annotated[float, Ge(0)] | None = None
    """Images with a larger width/height are left out and listed."""
    crop: bool = False
    """Off: fit to the bucket and trim from the centre. On: crop_aspect and crop_style apply."""
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    """Shape of the result; square is the safe choice, random evens out results over shapes."""
    crop_aspect_buckets: list[Any] | None = None
    """Aspect ratios for closest and random: numbers, or {aspect, weight} with weights that sum to 1."""
    crop_style: Literal["random", "center", "corner"] = "random"
    """Where to cut; random with square crops suits Flux."""
    max_num_samples: Annotated[int, Ge(1)] | None = None
    """Uses a fixed subset of this many images; adding a file changes at most one of them."""
    caption_extension: str | None = None
    """Ending of caption files; unset means .txt, else .caption."""
    missing_caption: Literal["error", "skip", "instance_prompt", "empty"] = "error"
    """What to do with an image that has no caption."""
    parquet: dict[str, Any] | None = None
    """Table of captions or sizes: {path, filename_column, caption_column, fallback_caption_column, ...}."""
    jsonl: dict[str, Any] | None = None
    """The same; without it the table is metadata.jsonl among the images, with the names in file_name."""
    csv: dict[str, Any] | None = None
    """The same; without it the table is metadata.csv among the images, with the names in file_name."""
    caption_column: str | None = None
    """Column of the table with the captions; unset means text, caption or prompt."""
    fallback_caption_column: str | None = None
    """Column of the table that is taken where the caption is empty."""
    width_column: str | None = None
    """Column of the table with the width in pixels."""
    height_column: str | None = None
    """Column of the table with the height in pixels."""
    metadata_backend: Annotated[
        Literal["discovery", "parquet", "jsonl", "csv"],
        Meaning(
            {
                "discovery": "the files themselves",
                "parquet": "width_column and height_column of the table parquet",
                "jsonl": "those of the table jsonl",
                "csv": "those of the table csv",
            }
        ),
    ] = "discovery"
    """Where sizes come from; a table opens no file before it is encoded, and what it says is checked then."""
    caption_shuffle: dict[str, Any] | None = None
    """Adds each caption in other orders: {enable, count, seed, split_on, position_start, include_original}."""
    repeats: Annotated[int, Ge(0)] = 0
    """Extra passes per epoch: 0 meets each image once, 9 ten times."""
    probability: Annotated[float, Gt(0)] = 1.0
    """Weight when the dataset of the next micro-batch is drawn; it shapes the order within an epoch."""
    train_batch_size: Annotated[int, Ge(1)] | None = None
    """Batch size of this dataset; unset means the run's."""
    is_regularisation_data: bool = False
    """Trains towards the base model's own prediction, so that other subjects keep their looks."""
    loss_weight: Annotated[float, Ge(0)] = 1.0
    """Factor on the loss of each sample of this dataset."""
    text_embeds: str | None = None
    """Text cache to use, by id; unset means the default one."""


class TextEntry(PerTextCache, title="Text cache"):
    """The text cache of the dataset file."""

    id: str
    """Name of the cache in messages."""
    type: Literal["local"]
    """Where the cache is kept."""
    dataset_type: Literal["text_embeds"] = "text_embeds"
    """Role of the entry."""
    disabled: bool = False
    """Checks the entry for spelling, then leaves it out."""
    default: bool = False
    """Marks the cache that also holds validation prompts and the empty caption."""
    cache_dir: Path | None = None
    """Root of the cache; unset means cache_dir_text."""
    caption_filter_list: list[str] | None = None
    """Words taken out of every caption, or s/find/replace/: a list, or a .txt or .json file with one."""


SECRETS = ("aws_access_key_id", "aws_secret_access_key")  # their values are never shown
BUCKET_KEYS = (
    "aws_bucket_name", "aws_data_prefix", "aws_region_name", "aws_endpoint_url", *SECRETS, "aws_max_pool_connections",
)  # fmt: skip

# Other spellings of keys and values, as in the original.
KEY_ALIASES = {"disable": "disabled", "is_regularization_data": "is_regularisation_data"}
VALUE_ALIASES = {
    ("type", "s3"): "aws",
    ("crop_style", "centre"): "center",
    ("caption_strategy", "instance_prompt"): "instanceprompt",
    ("metadata_backend", "json"): "discovery",
}

_LATER_STORE = "only folders and buckets are read for now"
_HUB = "data sets of the hub are not read yet"
_LOCAL_CACHES = "caches are kept in local folders for now"
_PAIRS = "masks and references are not read yet"
_SCHEDULE = "datasets take part from the first to the last step for now"
_ENCODE_FIRST = "everything is encoded before training for now"
_ONE_CROP = "one crop of each image is cached for now"
_SLIDERS = "sliders and time offsets are not trained yet"
_EAGER = "every start looks at the folder and at the caches for now"

# Keys of later features: why, and the values that leave the feature off besides null, "", none, false, 0, [] and {}.
NOT_YET: dict[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("crop_variants", "vae_cache_clear_each_epoch"), (_ONE_CROP, (1,))),
    "huggingface": (_HUB, ()),
    **dict.fromkeys(
        ("conditioning_data", "conditioning_type", "source_dataset_id", "conditioning", "captions", "name_suffix")
        + ("invert_mask", "mask_min_value"),
        (_PAIRS, ()),
    ),
    "on_missing": (_PAIRS, ("error",)),
    "start_epoch": (_SCHEDULE, (1,)),
    **dict.fromkeys(("start_step", "end_epoch", "end_step"), (_SCHEDULE, ())),
    **dict.fromkeys(("slider_strength", "timestep_sampling_offset"), (_SLIDERS, ())),
    "image_embeds": ("image caches are named by cache_dir_vae for now", ()),
    **dict.fromkeys(("vae_cache_ondemand", "vae_cache_disable"), (_ENCODE_FIRST, ())),
    **dict.fromkeys(("text_cache_ondemand", "text_cache_disable"), (_ENCODE_FIRST, ())),
    "vae_cache_preprocess": (_ENCODE_FIRST, (True, "true")),
    "vae_cache_scan_behaviour": ("a bad item is always encoded again for now", ("recreate",)),
    **dict.fromkeys(("scan_for_errors", "skip_file_discovery"), (_EAGER, ())),
    "read_batch_size": ("reading ahead follows image_processing_batch_size for now", (25,)),
    "compact": ("all rows of a text are stored for now", ()),
    **dict.fromkeys(
        ("csv_file", "csv_caption_column", "csv_cache_dir", "dataset_name", "revision")
        + ("streaming", "num_proc", "auto_load", "composite_image_config", "filter_func"),
        (_LATER_STORE, ()),
    ),
    "csv_url_column": (_LATER_STORE, ("url",)),
    "split": (_LATER_STORE, ("train",)),
    "image_column": (_LATER_STORE, ("image",)),
}  # fmt: skip

# Values of known keys that belong to later features.
NOT_YET_VALUES = {
    **{("type", name): _LATER_STORE for name in ("csv", "huggingface")},
    **{("dataset_type", name): _PAIRS for name in ("conditioning", "image_embeds")},
    ("dataset_type", "eval"): "held-out sets are not read yet",
    ("crop_style", "face"): "faces are not looked for yet",
    **dict.fromkeys(((key, "huggingface") for key in ("caption_strategy", "metadata_backend")), _HUB),
}

# The same of text caches alone.
NOT_YET_IN_CACHES: dict[str, tuple[str, tuple[Any, ...]]] = dict.fromkeys(BUCKET_KEYS, (_LOCAL_CACHES, (128,)))
NOT_YET_VALUES_IN_CACHES = {("type", "aws"): _LOCAL_CACHES}

# Values that are refused for good.
REFUSED_VALUES = {
    **{
        ("dataset_type", name): "not offered: Flux trains on images"
        for name in ("video", "audio", "caption", "conditioning_image_embeds", "distillation_cache")
    },
    ("type", "memory"): "not offered: images must outlive the run to be read again",
    ("type", "webshart"): "not offered: unpack the shards into a folder",
}

# Accepted without effect: the key and its default; a notice is given for any other value.
WITHOUT_EFFECT: dict[str, Any] = {
    "hash_filenames": True,
    "preserve_data_backend_cache": False,
    "compress_cache": True,
    "compress_disk_cache": True,
    "override_dataset_config": False,
    "aspect_bucket_disable_rebuild": False,
    "disable_bucket_pruning": False,
}
NEVER_DELETES = ("delete_unwanted_images", "delete_problematic_images")
