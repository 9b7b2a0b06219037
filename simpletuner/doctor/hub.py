"""The model hub: whether it answers, and whether this login may read the chosen model. Asks the configured hub only."""

from __future__ import annotations

import os
from collections.abc import Iterator

from simpletuner.config import Config
from simpletuner.doctor.diagnosis import Diagnosis
from simpletuner.errors import SimpleTunerError
from simpletuner.models import access, families, places
from simpletuner.models.options import Model
from simpletuner.models.places import Place
from simpletuner.rules.hub import logged_in

MIRROR = "export HF_ENDPOINT=https://hf-mirror.com"
MISSING = 404
REFUSED = (401, 403)


def _unasked(offline: bool) -> str:
    """Why the hub is not asked; empty if it is."""
    return "--offline" if offline else "HF_HUB_OFFLINE" if access.offline() else ""


def _login() -> str:
    return "logged in" if logged_in(os.environ) else "no login"


def endpoint(*, offline: bool) -> Iterator[Diagnosis]:
    """Whether the hub answers, where no model is known that could be asked for."""
    place = places.endpoint()
    if reason := _unasked(offline):
        yield Diagnosis("hub", f"{place} not checked ({reason})")
        return
    status, wrong = access.head("")
    if status != access.NO_ANSWER:
        yield Diagnosis("hub", f"{place} answers, {_login()}")
    elif os.environ.get("HF_ENDPOINT"):
        fix = "correct HF_ENDPOINT, or: unset HF_ENDPOINT"
        yield Diagnosis("hub", f"HF_ENDPOINT={place} does not answer: {wrong}", "fail", fix, "remote")
    else:
        yield Diagnosis("hub", f"{place} does not answer: {wrong}", "warning", MIRROR)


def model(config: Config, *, offline: bool) -> Iterator[Diagnosis]:
    """Whether the model is here or can be fetched."""
    family = families()[config[Model].model_family]
    flavour = family.flavour(config[Model].model_flavour)
    try:
        on_disk = family.on_disk(config[Model])
        place, missing = on_disk.place, on_disk.missing
    except SimpleTunerError as error:
        first = error.problems[0]
        yield Diagnosis("model", first.message, "fail", first.fix, first.area)
        return
    if not missing:
        yield Diagnosis("model", f"{place.name} is on this disk")
    elif place.local:
        text = f"{place.name} has no {', '.join(missing)}"
        yield Diagnosis("model", text, "fail", "give a whole model in the diffusers layout", "config")
    elif access.gated(flavour, place) and not logged_in(os.environ):
        text = f"{place.name} is gated, and this machine has no login"
        yield Diagnosis("model", text, "fail", place.terms, "auth")
    elif reason := _unasked(offline):
        text = f"{place.name} is not on this disk, access not checked ({reason})"
        yield Diagnosis("model", text, "warning", f"hf download {place.name}")
    else:
        yield _access(place)


def _access(place: Place) -> Diagnosis:
    status, wrong = access.reply(place)
    if status == access.NO_ANSWER:
        text = f"{place.name} is not on this disk, and {places.endpoint()} does not answer: {wrong}"
        return Diagnosis("model", text, "fail", f"check the connection, or: {MIRROR}", "remote")
    if status in REFUSED:
        return Diagnosis("model", f"this login may not read {place.name}", "fail", place.terms, "auth")
    if status == MISSING:
        text = f"{place.page} does not exist for this login, or has no revision {place.revision or 'main'}"
        return Diagnosis("model", text, "fail", "correct the name; for a private one: hf auth login", "auth")
    if status >= 400:
        return Diagnosis("model", f"{place.page} answers {status} {wrong}", "warning", "try again later")
    return Diagnosis("model", f"{place.name} can be fetched, {_login()}")
