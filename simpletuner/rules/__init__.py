"""What may not be combined: one small function per rule of config.md section 8, each naming its options.

A rule gets the whole configuration and says nothing, or what is wrong. All rules run; all findings are shown at once.
Three rules have their place where their matter is read: 8 in data.library, 38 in validation.prompts, and 55 in
training.drift. 26 is a choice that is not offered, and of 23 nothing is left: int8-bnb compiles as all kinds do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from simpletuner import retired
from simpletuner.config import Config
from simpletuner.data.datasets import ImageSet
from simpletuner.errors import Problem
from simpletuner.machine import Machine
from simpletuner.rules import (
    adapter,
    attention,
    conditions,
    contents,
    distributed,
    hardware,
    hub,
    length,
    objective,
    offload,
    optimizer,
    packages,
    precision,
    routing,
    saving,
    sizes,
    speed,
    validation,
)
from simpletuner.rules.findings import Rule, listed
from simpletuner.types import Prompt

Table = Mapping[int, tuple[Rule, ...]]  # number in the contract -> the functions that see to it

RULES: Table = {
    1: (length.not_both_lengths,),
    2: (length.some_length,),
    3: (sizes.sizes_together,),
    4: (sizes.sizes_in_order,),
    5: (sizes.area_is_in_megapixels,),
    6: (sizes.edge_is_in_pixels,),
    7: (sizes.dataset_file_is_there,),
    10: (precision.trained_weights_are_unquantised,),
    12: (adapter.loftq_makes_up_for_nf4,),
    13: (adapter.changed_base_is_unquantised,),
    14: (adapter.dora_reads_its_base,),
    15: (adapter.recipe_says_it,),
    16: (adapter.recipe_is_complete,),
    17: (adapter.targets_exist,),
    18: (offload.one_offload,),
    19: (offload.swap_alone,),
    24: (precision.pipeline_can_quantise,),
    25: (attention.sage_is_for_validation,),
    27: (attention.masked_layers_use_sdpa,),
    28: (objective.times,),
    29: (objective.times,),
    30: (objective.times,),
    31: (objective.unshifted_modes,),
    32: (objective.guidance_range,),
    33: (objective.guidance_is_taken,),
    34: (objective.schnell_as_it_is,),
    35: (validation.negative_prompt_is_used,),
    36: (validation.previews_appear,),
    37: (validation.previews_are_seen,),
    39: (optimizer.rate_falls,),
    40: (length.warmup_ends,),
    41: (precision.bf16_optimizer,),
    42: (optimizer.schedule_free_has_no_schedule, optimizer.released_gradients_are_whole),
    43: (packages.packages_are_installed,),
    44: (routing.routes_are_sound,),
    45: (routing.routes_spare_the_ends,),
    46: (distributed.shards_are_cut_alone,),
    47: (distributed.processes_are_counted_once,),
    49: (distributed.machines_find_each_other,),
    50: (hub.checkpoints_follow_the_push,),
    51: (hub.push_has_a_login,),
    52: (validation.both_eval_intervals,),
    54: (saving.low_disk_has_its_script,),
    56: (objective.references_as_elsewhere,),
    57: (validation.one_adapter_source,),
}
DATASET_RULES: Table = {
    9: (contents.kontext_has_pairs,),
    11: (contents.regularisation_has_a_base,),
    52: (contents.held_out_sets_are_there,),
    53: (contents.masks_are_there,),
}
HARDWARE_RULES: Table = {
    12: (hardware.loftq_has_nvidia,),
    20: (hardware.streams_have_cuda,),
    21: (hardware.bitsandbytes_has_cuda,),
    22: (hardware.base_is_computable,),
    48: (hardware.processes_have_gpus,),
}
# Of our own: what the contract says elsewhere, or implies.
FURTHER_RULES: tuple[Rule, ...] = (
    attention.deterministic_kernels_repeat,
    speed.modules_run_as_they_are,
    speed.products_are_joined,
    speed.blocks_are_compiled_alone,
    precision.base_matches_computation,
    precision.updates_are_kept,
    optimizer.clips_once,
    offload.what_moves_is_frozen,
    offload.moved_blocks_are_recomputed,
    offload.what_moves_has_no_dropout,
    validation.sizes_are_readable,
    validation.prompts_are_used,
    conditions.conditions_hold,
)
FURTHER_HARDWARE_RULES: tuple[Rule, ...] = (
    hardware.apple_trains_small_models,
    hardware.state_is_computable,
    hardware.offload_has_somewhere_to_go,
)
FURTHER_DATASET_RULES: tuple[Rule, ...] = (
    contents.places_can_be_read,
    contents.tables_can_be_read,
    contents.connections_have_a_bucket,
)
PROMPT_RULES: tuple[Rule, ...] = (contents.strength_has_an_adapter,)


def check(config: Config) -> list[Problem]:
    """The findings of all rules about the options, each with the places of its keys."""
    found = _findings(config, [*_functions(RULES), *FURTHER_RULES])
    return [finding for finding in found if not _told(config, finding)]


def check_contents(config: Config, datasets: Sequence[ImageSet] | None, prompts: Sequence[Prompt]) -> list[Problem]:
    """The findings of the rules about what the dataset file and the prompt library hold; None: it could not be read."""
    of_datasets = [*_functions(DATASET_RULES), *FURTHER_DATASET_RULES] if datasets is not None else []
    return [*_findings(config, of_datasets, datasets), *_findings(config, PROMPT_RULES, prompts)]


def check_hardware(config: Config, machine: Machine) -> list[Problem]:
    """The findings of the rules about this machine: for those who would start the run on it."""
    return _findings(config, [*_functions(HARDWARE_RULES), *FURTHER_HARDWARE_RULES], machine)


def _told(config: Config, finding: Problem) -> bool:
    """Whether the reader says it as well: that the option has no effect, since its feature is not there yet."""
    about = finding.keys[:1] if finding.severity == "notice" else ()
    return any(key in retired.NOT_YET_HARMLESS and config.applies(key) for key in about)


def _functions(table: Table) -> list[Rule]:
    """Each once, in the order of the numbers."""
    return list(dict.fromkeys(rule for rules in table.values() for rule in rules))


def _findings(config: Config, rules: Sequence[Rule], *more: object) -> list[Problem]:
    """But for what follows from a default that only stands for a refused value."""
    found = [finding for rule in rules for finding in listed(rule(config, *more))]
    return [_placed(config, finding) for finding in found if config.refused.isdisjoint(finding.keys)]


def _placed(config: Config, problem: Problem) -> Problem:
    places = [config.origins[key] for key in problem.keys if key in config.origins]
    return problem if problem.where or not places else replace(problem, where=" and ".join(dict.fromkeys(places)))
