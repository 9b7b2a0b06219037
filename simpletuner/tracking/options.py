"""Where a run writes its logs, whom it tells what happens, and where it publishes the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from simpletuner.schema import GIVEN, Basic, Expert, Ge, Group, Meaning, Unit, When

PUBLISHED = When(push_to_hub=True)


class Logging(Group, title="Logging and webhooks"):
    report_to: Annotated[
        list[Literal["none", "simpletuner", "tensorboard", "wandb", "trackio", "all"]],
        Basic,
        Meaning(
            {
                "none": "local metrics only",
                "simpletuner": "the same",
                "tensorboard": "files for TensorBoard in logging_dir",
                "wandb": "Weights & Biases, on their servers",
                "trackio": "Trackio, local or on the hub",
                "all": "every tracker that is installed",
            }
        ),
    ] = ["none"]
    """Trackers besides metrics.jsonl and the report, which are always written; a tracker can never stop the run."""
    tracker_project_name: str = "simpletuner"
    """Project in the tracker, under which runs are compared."""
    tracker_run_name: str | None = None
    """Name of the run in the tracker, and the title in exported files; unset means the name of output_dir."""
    tracker_image_layout: Annotated[
        Literal["gallery", "table"],
        Expert,
        Meaning({"gallery": "one panel for each prompt", "table": "one row for each image"}),
    ] = "gallery"
    """How images appear in the tracker."""
    logging_dir: Annotated[Path | None, Expert] = None
    """Folder of the text log; unset means logs in the output folder, so that it moves along with the run."""
    webhook_config: dict[str, Any] | list[Any] | str | None = None
    """Where events go, Discord or raw JSON, as a file, an object or a list of them; write secrets as {env:NAME}."""
    webhook_reporting_interval: Annotated[float | None, Ge(30), Unit("seconds"), Expert, When(webhook_config=GIVEN)] = (
        None
    )
    """At most one message about progress in this time; unset means one for each event."""


class Hub(Group, title="Hub and publishing"):
    push_to_hub: Annotated[bool, Basic] = False
    """Uploads the result to the Hugging Face Hub, in the background; off unless you say so."""
    hub_model_id: Annotated[str | None, PUBLISHED] = None
    """Name of the repository; unset means the name of the run."""
    push_checkpoints_to_hub: bool = False
    """Uploads every checkpoint too; safe, and much traffic."""
    model_card_private: Annotated[bool, PUBLISHED] = True
    """Only you see the repository."""
    model_card_safe_for_work: Annotated[bool, PUBLISHED] = False
    """Leaves the content warning out of the model card; you vouch for your images."""
    model_card_note: Annotated[str | None, PUBLISHED] = None
    """A text at the top of the model card."""
    post_upload_script: Annotated[Path | None, Expert, PUBLISHED] = None
    """Program run after an upload; taken from a local file only, run without a shell."""
