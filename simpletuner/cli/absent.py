"""Commands that are not there: the nearest one, those of later versions, and those of the original without a place."""

from __future__ import annotations

from collections.abc import Collection

from simpletuner.errors import ConfigError
from simpletuner.registry import did_you_mean, nearest

LATER = {  # name -> what does its work meanwhile
    "server": "watch a run in its report.html, which is written anew after each validation",
    "hub": "upload the LoRA file with: hf upload OWNER/NAME FILE",
    "metrics": "read metrics.jsonl in the run's folder",
}
WEB_UI = "the web UI"
NOT_OFFERED = {  # name -> why, and what does the same
    "jobs": ("a command starts one run and waits for it", WEB_UI),
    "auth": ("there are no user accounts", "for the model hub: hf auth login"),
    "quota": ("there are no user accounts", "nothing to do"),
    "cloud": ("runs happen on this machine", "on a rented machine: ./train.sh"),
    "worker": ("runs happen on this machine", "on a rented machine: ./train.sh"),
    "backup": ("everything is in plain files", "copy config/ and the run's folder"),
    "database": ("there is none to look after", "the files of a run are its record"),
}


def no_command(name: str, commands: Collection[str]) -> ConfigError:
    """The error for a name that is no command."""
    if name in NOT_OFFERED:
        reason, instead = NOT_OFFERED[name]
        return ConfigError(f"{name} is not offered: {reason}", where="command line", fix=_fix(instead, commands))
    if name in LATER:
        return ConfigError(f"{name} is not yet available in this version", where="command line", fix=LATER[name])
    near = nearest(name, commands)
    fix = did_you_mean(name, commands) if near else "simpletuner --help lists the commands"
    return ConfigError(f'no command "{name}"', where="command line", fix=fix)


def _fix(instead: str, commands: Collection[str]) -> str:
    """The web UI is named only where it is there."""
    if instead != WEB_UI:
        return instead
    if "server" in commands:
        return "the web UI has a queue: simpletuner server"
    return "run one after the other: simpletuner train --env ONE && simpletuner train --env TWO"
