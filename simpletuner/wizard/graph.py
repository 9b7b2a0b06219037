"""The twelve questions in their order."""

from __future__ import annotations

from simpletuner.wizard.questions import Question
from simpletuner.wizard.topics import adapter, hardware, length, model, pictures, place, reports, samples, sizes, start

QUESTIONS: tuple[Question, ...] = (
    start.QUESTION,
    hardware.GPUS,
    model.MODEL,
    pictures.PICTURES,
    pictures.CAPTIONS,
    sizes.SIZES_AND_CUTS,
    adapter.ADAPTER,
    hardware.PRECISION,
    length.LENGTH,
    place.PLACE,
    samples.SAMPLES,
    reports.REPORTS,
)
