"""Plans: every decision that a config leaves to the model, the machine or other options is made here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from ..allocation.budget import Budget
from ..analysis.attention import find_unit_variants
from ..compression.training.end_to_end import check_launch
from ..config import FFPConfig
from ..config.fields import Config
from ..config.prune import PPO_STEPS, SEARCH_STEPS, TRAINING_SUFFICES, WORKLOAD
from ..config.training import LORA_RANK
from ..data import check_calibration_tokens, window_length
from ..errors import FFPError
from ..evaluation.block_costs import read_costs
from ..hub.record import read_policy
from ..modeling.families import Mixture, ModelUnit, find_family
from ..modeling.limits import candidate_sizes, kept_tokens
from ..modeling.loading import LoadOptions, loading_errors
from ..modeling.offloading import check_offload
from ..plan import Plan
from ..search.runner import check_budget
from ..utils import processes
from .estimate import Estimate, Machine, PruneEstimator


# What a prune of a mixture of experts does: all layers lose the same number, without a search.
FOR_EXPERTS = {"method": "homogeneous", "candidates": 1, "min_retention": 0.0, "reward": "pruned"}
# What a prune of the vocabulary alone does: nothing else is removed, compared or ranked with effort.
FOR_VOCABULARY = {
    "method": "uniform",
    "criterion": "wanda",
    "mapping": "water-filling",
    "reward": "pruned",
}


def make_plans(
    configs: Sequence[FFPConfig],
    model: PreTrainedModel,
    options: LoadOptions,
    machine: Machine | None = None,
    saves_work: bool = True,
    local_processes: int | None = None,
    length: int | None = None,
    decided: Mapping[str, Any] | None = None,
    warm_start: bool = False,
) -> tuple[list[Plan], Estimate]:
    """Plan prunes of a model that differ in the budget, and estimate the resources that all of them need.

    The calibration is the first for which memory suffices of `model`, of all weights or of adapters, and `layers`.

    Args:
        configs: Options, one for each prune. All but the budget are those of the first.
        model: The dense model; may be on the meta device.
        options: How the model is or will be loaded. With offload `"auto"` the weights are in the first place for which
            memory suffices, or else in the last.
        machine: Device and available memory; those of this machine if `None`.
        saves_work: Whether finished work is saved to disk, which offload `"disk"` needs.
        local_processes: Number of processes on this machine that share the work; by default that of this run.
        length: Tokens per window, if windows are given.
        decided: Calibration and rank of adapters that an interrupted prune has decided on.
        warm_start: Whether the first search starts from an agent.

    Raises:
        FFPError: If the model can't be pruned or offloaded, a chosen module can't be used, or a budget can't be met.
    """
    machine, local_processes = machine or Machine.of(options.device), local_processes or processes.local_count()
    drafts, (units, *_) = zip(*(_decide_vocabulary(config, model, length) for config in configs))
    for before, draft in pairwise(drafts):
        # Agents transfer between budgets, so that further searches need half as many candidates.
        if warm_start := warm_start or before["method"] == "ffp":
            draft["search_steps"] = max(1, draft["search_steps"] // 2)
    check_calibration_tokens(configs[0].num_samples * drafts[0]["seq_len"], max(unit.width for unit in units))

    def planned(choice: Mapping[str, Any]) -> tuple[list[Plan], Estimate]:
        plans = [_plan(config, draft, choice) for config, draft in zip(configs, drafts)]
        return plans, PruneEstimator(plans, model, units, machine, local_processes, saves_work).estimate()

    places = _places(configs[0], drafts[0]["budget"], model.config, options, machine, saves_work)
    choice, *others = _choices(configs[0], places, decided)
    plans, estimate = planned(choice)
    while estimate.warnings and others:
        choice = others.pop(0)
        plans, estimate = planned(choice)
    # Other processes may have found more or less free memory.
    if (main := processes.from_main(choice)) != choice:
        plans, estimate = planned(main)
    if plans[0].calibration == "model":
        check_launch(machine.device, plans[0].offload, saves_work, can_shard=False)
    return plans, estimate


def _decide_vocabulary(
    config: FFPConfig, model: PreTrainedModel, length: int | None
) -> tuple[dict[str, Any], list[ModelUnit]]:
    """Return what `_decide` does, with vocabulary `"auto"` that for the smallest one, and the drafts for all sizes."""
    if config.vocabulary != "auto":
        return _decide(config, model, length)
    drafts, problem = [], None
    units = find_unit_variants(model, find_family(model.config), config, config.attention or "auto")[0]
    for size in candidate_sizes(model, [unit.unit for unit in units], config):
        try:
            draft, units = _decide(replace(config, vocabulary=size), model, length)
            drafts.append(draft)
        except FFPError as error:
            problem = error
    if not drafts:
        raise problem or FFPError(f"{config.budget_name} leaves nothing to remove")
    return drafts[-1] | {"alternatives": drafts}, units


def _decide(config: FFPConfig, model: PreTrainedModel, length: int | None) -> tuple[dict[str, Any], list[ModelUnit]]:
    """Return all options with those that are decided before the calibration, and the units of the model."""
    family, limits, times = find_family(model.config), config.limits, read_costs(config)
    if isinstance(family, Mixture):
        check_experts(config)
        config = replace(config, **FOR_EXPERTS, attention="kv-groups")
    elif config.keeps_units:
        config = replace(config, **FOR_VOCABULARY)
    removes_heads = config.method == "homogeneous" or config.memory or config.kv_cache
    attention = config.attention or ("kv-groups" if removes_heads else "auto")
    with loading_errors(model.config._name_or_path or "the model", None):
        variants = find_unit_variants(model, family, config, attention)
    if config.policy:
        policy = read_policy(config.policy, [unit.unit for unit in variants[0]])
        limits = {"sparsity": policy.sparsity}
    budget = check_budget(model, variants, config, limits, times)
    skips = config.method is None and _training_suffices(config, budget)
    draft = vars(config) | {
        "seq_len": length or window_length(config.seq_len, model.config, bool(config.vocabulary)),
        "method": config.method or ("no-search" if skips else "ffp"),
        "attention": attention,
        "agent": config.agent_name,
        "search_steps": config.search_steps or (PPO_STEPS if config.agent_name == "ppo" else SEARCH_STEPS),
        "workload": (times or {}).get("workload", config.workload or WORKLOAD),
        "sparsity": limits.get("sparsity"),
        "budget": budget,
        "skips_search": skips,
        "vocabulary_alone": config.keeps_units,
        "vocabulary": config.vocabulary and kept_tokens(model.config, config.vocabulary),
    }
    return draft, variants[0]


def check_experts(config: FFPConfig) -> None:
    """Raise `FFPError` if an option is given that has no meaning for a mixture of experts."""
    # The record of a mixture has all options.
    if FOR_EXPERTS.items() <= vars(config).items():
        return
    presets = config.preset_values(config.preset)
    for field in config.option_fields():
        value, default = getattr(config, field.name), presets.get(field.name, field.default)
        if not field.metadata["for_experts"] and value not in (default, FOR_EXPERTS.get(field.name)):
            raise FFPError(
                f"every layer of a mixture of experts loses the same number of experts; leave out {field.name}"
            )


def _training_suffices(config: FFPConfig, budget: Budget) -> bool:
    """Return whether training makes up for what a search would gain."""
    # The threshold is a fraction of the blocks, not of the KV cache.
    is_default = config.preset != "paper" and not config.agent and not config.kv_cache
    trains = config.calibration not in ("none", "ridge")
    return trains and is_default and budget.sparsity >= TRAINING_SUFFICES


def _places(
    config: FFPConfig,
    budget: Budget,
    model_config: PretrainedConfig,
    options: LoadOptions,
    machine: Machine,
    saves_work: bool,
) -> list[str]:
    """Return where the weights of layers that aren't running may be, fastest first."""
    if options.offload != "auto":
        check_offload(options.offload, machine.device)
        return [options.offload]
    on_accelerator = machine.accelerator is not None
    is_timed = any(limit.pending for limit in budget.limits)
    # The weights of a model that generates text, is timed or was pruned before are on its device.
    if is_timed or hasattr(model_config, "pruned_units") or (config.texts.includes_self and on_accelerator):
        return ["none"]
    places = ["none", "host"] if on_accelerator else ["none"]
    if saves_work:
        places.append("disk")
    return places


def _choices(config: FFPConfig, places: Sequence[str], decided: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the calibrations, ranks of adapters and places of weights that are possible, the best first."""
    rank = config.choice_options.get("lora")
    calibrations = [{"calibration": config.calibration, "lora": rank}]
    if config.calibration is None and decided:
        calibrations = [dict(decided)]
    elif config.calibration is None:
        ranks = [rank]
        if rank is None:
            ranks = [0, LORA_RANK] if find_spec("peft") else [0]
        calibrations = [{"calibration": "model", "lora": one} for one in ranks if places[0] == "none"]
        calibrations.append({"calibration": "none" if config.keeps_units else "layers", "lora": rank})
    for calibration in calibrations:
        # A model that is trained as a whole has all weights on its device too, which is the first place.
        for place in places[:1] if calibration["calibration"] == "model" else places:
            yield calibration | {"offload": place}


def _plan(config: FFPConfig, draft: Mapping[str, Any], choice: Mapping[str, Any]) -> Plan:
    """Return the plan for a draft, and a choice of the calibration, its rank of adapters and the offload."""
    used = ["criterion", "mapping", "expert_criterion"]
    if draft["method"] == "ffp":
        used.insert(0, "agent")
    options = {option: config.options_for(option, draft[option]) for option in used}
    options["calibration"] = _calibration_options(config, choice["calibration"], choice["lora"])
    chosen = {"calibration": choice["calibration"], "offload": choice["offload"]}
    chosen["alternatives"] = tuple(_plan(config, one, choice) for one in draft.get("alternatives", ()))
    made = {option: value for option, value in options.items() if value}
    return Plan(**{**draft, **chosen}, asked=config, options=made)


def _calibration_options(config: FFPConfig, name: str, rank: int | None) -> Config | None:
    """Return the options of a calibration, if it has any; only that of the whole model trains adapters."""
    decided: dict[str, Any] = {"lora": rank or 0} if name == "model" else {}
    if name == "model" and config.keeps_units:
        decided["distillation_passes"] = 0
    return config.options_for("calibration", name, **decided)


def recalibrated(plan: Plan, options: Mapping[str, Any]) -> Plan:
    """Return a plan with another calibration and options of it, of a policy that was searched for already.

    Raises:
        FFPError: If an option is not one of the calibration.
    """
    asked = replace_options(plan.asked, options)
    before, now = plan.asked.for_stages("measured", "search"), asked.for_stages("measured", "search")
    if changed := [name for name in now if now[name] != before.get(name)]:
        raise FFPError(f"{', '.join(changed)} can't change after the search; search again")
    name = asked.calibration or plan.calibration
    rank = asked.choice_options.get("lora", 0 if asked.calibration else plan.lora)
    chosen = {**plan.options, "calibration": _calibration_options(asked, name, rank)}
    made = {option: value for option, value in chosen.items() if value}
    return replace(plan, asked=asked, calibration=name, options=made, batch_size=asked.batch_size)


def replace_options(config: FFPConfig, options: Mapping[str, Any]) -> FFPConfig:
    """Return a config with other options. One that limits the size, or a policy, is in addition to the others."""
    return FFPConfig(**{**vars(config), **config.choice_options, **options})
