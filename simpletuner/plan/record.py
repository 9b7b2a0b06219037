"""A plan as plain data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpletuner.errors import exit_code
from simpletuner.training.options import Training

if TYPE_CHECKING:
    from simpletuner.plan import Plan


def plain(plan: Plan) -> dict[str, Any]:
    """JSON data; bytes, seconds and counts, no texts for people but those of problems."""
    record: dict[str, Any] = {
        "can_start": plan.can_start,
        "exit_code": exit_code(plan.problems),
        "problems": [problem.record() for problem in plan.problems],
    }
    if Training.__name__ not in plan.config.groups:
        return record
    record |= {"config": str(plan.config.path or ""), "output_dir": str(plan.config[Training].output_dir)}
    record |= {"result": str(plan.result)}
    if (details := plan.details) is None:
        return record
    found = {
        "captions": {"texts": details.num_captions, "dropouts": details.dropouts},
        "datasets": [health.record() for health in details.datasets],
        "caches": [asdict(cache) | {"to_make": cache.to_make} for cache in details.caches],
        "length": asdict(details.length) | {"epochs": details.length.epochs},
        "saves": details.calendar.saves,
        "images": {"steps": details.calendar.images, "each": details.shots},
        "resume": asdict(details.resume) | {"differences": [p.record() for p in details.resume.differences]},
        "memory": {
            "fits": details.fit.fits,
            "needed": details.fit.needed,
            "available": details.fit.available,
            "gpu": details.fit.gpu.name if details.fit.gpu else details.fit.unknown,
            "ram": {"needed": details.fit.ram_needed, "available": details.fit.ram_bytes},
            "moved": asdict(details.moved) if details.moved else None,
            "phases": [{"name": p.name, "vram": dict(p.vram), "ram": dict(p.ram)} for p in details.fit.phases],
            "remedies": [
                {
                    "change": dict(r.change.values),
                    "resolutions": dict(r.change.resolutions),
                    "needed": r.peak_bytes,
                    "fits": r.fits,
                    "together": r.together,
                }
                for r in details.remedies
            ],
        },
        "disk": asdict(details.disk) | {"needed": details.disk.needed},
        "time": asdict(details.time),
        "base": {
            "flavour": details.base.flavour.name, "name": details.base.name, "on_disk": details.base.here,
            "licence": details.base.flavour.licence, "licence_id": details.base.flavour.licence_id,
            "gated": details.base.flavour.gated, "access": details.base.access,
        },
        "weight_bytes": details.weight_bytes,
    }  # fmt: skip
    return record | _jsonable(found)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    return str(value) if isinstance(value, Path) else value
