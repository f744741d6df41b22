"""FFPPruner: runs the stages of a prune."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .analysis.measurements import Measurements
from .checkpoint.pushing import push_result
from .checkpoint.result import PruningResult, SearchResult, package_versions
from .checkpoint.saving import SavedAgent, load_agent, save_checkpoint
from .compression.calibration import CalibrationTask
from .compression.training.end_to_end import check_launch
from .config import FFPConfig
from .data import DataSplits
from .data.samples import write_samples
from .engine.token_counter import total_tokens
from .errors import FFPError, convert_errors, one_line
from .evaluation.block_costs import read_costs
from .hub.license import read_license
from .modeling.checks import FIRST_TOKENS, check_losses, check_model
from .modeling.loading import (
    LoadOptions,
    find_dense,
    load_dense,
    load_pruned,
    pin_commit,
    resolve_device,
    shape_of,
)
from .modeling.padding import padded
from .plan import Plan
from .planning.estimate import Estimate, refine
from .planning.make import make_plans, recalibrated, replace_options
from .search.runner import PolicySearch
from .search.task import check_agent
from .search.vocabulary import choose_vocabulary
from .utils import processes
from .utils.batch_size import memory_errors
from .utils.device_memory import device_name
from .utils.folders import expand
from .utils.json import write_json
from .utils.lm_head import embedding_of
from .utils.profiling import StageMeter
from .utils.resume import DECISION, WEIGHTS, Journal, fingerprint, saved_decision
from .utils.tracking import Tracker, check_trackers
from .vocabulary.trimmed import TrimmedVocabulary


# Agent to start a search from: a checkpoint's folder or Hub id, or the state of one.
WarmStart = str | os.PathLike | Mapping[str, np.ndarray] | None


class FFPPruner:
    """Prunes a model, to one or several sizes.

    Data, statistics and the sorted model (`measured`) are computed once, on first use, and shared by all calls of
    `prune`, which may have other options (`params`, `sparsity`, `method`, `calibration`, ...), except those that
    `measured` depends on. Several processes, such as those of `accelerate launch`, share the work and all get the
    results; all of them must make the same calls.

    Args:
        model: The dense model, of a supported family. It is changed in place: `requires_grad` is turned off, and its
            heads and channels are reordered, which leaves its outputs as they are. The pruned model is another one,
            `result.model`.
        tokenizer: Tokenizer of the model.
        config: Options of the prune, or a plan for this model.
        model_id: Hub id or path of the model, for the record.
        work_folder: Folder for finished work, including Gram and Fisher matrices, so that `prune(resume=True)` of
            another process can resume from it. It must be new, empty or left by another prune, and is used by one
            process at a time. `None` saves nothing.
        report_to: Where to log the search: one or several of `"tensorboard"`, `"trackio"`, `"wandb"`.
        options: How the model was loaded: where its layers run, and how datasets of the Hub are reached.
        data: Windows to use instead of the datasets of the config.
        dense: The original dense model, the teacher, if `model` was pruned before (`padded`).
        pruned_from: Name of the pruned model, for the record. `model_id` and `options` are those of the dense one.
        trimmed_tokenizer: Its tokenizer. `tokenizer` is that of the dense one.

    Attributes:
        measured: Windows, sorted model and losses of the dense model, which do not depend on the search.
        result: Last result of `finish` or `prune`.

    Raises:
        FFPError: If the model can't be pruned, or the budget can't be met.

    Example:
        >>> pruner = FFPPruner.from_pretrained("meta-llama/Llama-2-7b-hf", FFPConfig(sparsity=0.2))
        >>> pruner.prune()
        >>> pruner.save_pretrained("Llama-2-7b-hf-ffp-20")
        >>> # A model in memory:
        >>> result = FFPPruner(model, tokenizer, FFPConfig(dataset="my_text.txt")).prune()
        >>> print(result, evaluate(result.model, tokenizer=tokenizer))
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: FFPConfig | Plan,
        model_id: str | os.PathLike | None = None,
        work_folder: str | os.PathLike | None = None,
        report_to: str | Sequence[str] = (),
        options: LoadOptions | None = None,
        data: DataSplits | None = None,
        dense: PreTrainedModel | None = None,
        pruned_from: str | None = None,
        trimmed_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.report_to = check_trackers(report_to)
        name = model_id or getattr(getattr(model, "config", None), "_name_or_path", None) or "the model"
        self.model_id = os.fspath(name)
        check_model(model, tokenizer, self.model_id)
        self.options, self.work_folder = options or LoadOptions(), work_folder
        self.model, self.tokenizer, self.pruned_from = model, tokenizer, pruned_from
        if self.options.offload == "disk" and work_folder is None:
            raise FFPError("offload 'disk' needs a work_folder, which stores what doesn't fit into memory")
        self._length = data.calibration.length if data else None
        plan = config if isinstance(config, Plan) else self._make_plans([config])[0]
        # Computed before weights are converted and reordered.
        models = {"model": model, "dense": dense} if work_folder else {}
        self._fingerprints = {name: fingerprint(one) for name, one in models.items() if one is not None}
        device = None if self.options.offload == "none" else resolve_device(self.options.device)
        self.measured = Measurements(
            model, tokenizer, plan, data, device, self.options.token, dense, trimmed_tokenizer
        )
        self.result: PruningResult | None = None
        self._is_checked, self._saved_in = False, None
        model.eval().requires_grad_(False)

    def _make_plans(self, configs: Sequence[FFPConfig], warm_start: bool = False) -> list[Plan]:
        """Plan prunes of this model, as an interrupted process did."""
        plans, _ = make_plans(
            configs,
            self.model,
            self.options,
            saves_work=self.work_folder is not None,
            length=self._length,
            decided=saved_decision(self.work_folder) if self.work_folder else None,
            warm_start=warm_start,
        )
        return plans

    @cached_property
    def _license(self) -> Mapping[str, str]:
        found = read_license(self.model_id, **self.options.hub())
        if self.measured.plan.base_model and not found:
            found = read_license(self.measured.plan.base_model, token=self.options.token)
        return found

    @classmethod
    def plan(cls, model_id: str | os.PathLike, config: FFPConfig | None = None, **options: Any) -> Estimate:
        """Return what a prune with a work folder needs, as `ffp prune --plan` prints it, without loading weights.

        Arguments and errors are those of `from_pretrained`.
        """
        config = config or FFPConfig()
        load_options = LoadOptions(**{"offload": "auto", "base_model": config.base_model} | options)
        model = shape_of(os.fspath(model_id), load_options)
        plans, estimate = make_plans([config], model, load_options)
        return refine(estimate, plans, model, os.fspath(model_id), load_options)

    @classmethod
    @memory_errors()
    def from_pretrained(
        cls,
        model_id: str | os.PathLike,
        config: FFPConfig | Plan | None = None,
        work_folder: str | os.PathLike | None = None,
        report_to: str | Sequence[str] = (),
        **options: Any,
    ) -> "FFPPruner":
        """Load a dense model to prune, or a pruned one to prune further, along with its dense model.

        Args:
            model_id: Hub id, folder, or `.gguf` file.
            config: Options of the prune, or a plan for this model; the defaults if `None`.
            work_folder: As for the class.
            report_to: As for the class.
            options: Fields of `LoadOptions`: `device`, `dtype`, `offload` (by default `"auto"`), `revision`,
                `token`, ...

        Raises:
            FFPError: If the model can't be loaded or pruned, or the budget can't be met.
        """
        processes.join(options.get("device"))
        config, name = config or FFPConfig(), os.fspath(model_id)
        defaults = {"offload": "auto", "base_model": config.base_model}
        pinned = pin_commit(name, LoadOptions(**defaults | options))
        if not isinstance(config, Plan):
            decided, saves_work = saved_decision(work_folder) if work_folder else None, work_folder is not None
            model = shape_of(name, pinned)
            (config,), _ = make_plans([config], model, pinned, saves_work=saves_work, decided=decided)
        pinned = replace(pinned, offload=config.offload)
        dense_id, dense_options, rows = find_dense(name, pinned)
        model, tokenizer = load_dense(dense_id, dense_options, expand(work_folder) / WEIGHTS if work_folder else None)
        again = {}
        if rows:
            again = {"dense": model, "pruned_from": f"{name}@{pinned.revision}" if pinned.revision else name}
            pruned, trimmed_tokenizer = load_pruned(name, pinned)
            sizes = (len(embedding_of(one).weight) for one in (model, pruned))
            vocabulary = TrimmedVocabulary.between(tokenizer, trimmed_tokenizer, *sizes)
            model = padded(model, pruned, rows, vocabulary.kept if vocabulary else None)
            again["trimmed_tokenizer"] = trimmed_tokenizer
        return cls(model, tokenizer, config, dense_id, work_folder, report_to, dense_options, **again)

    def prune(self, warm_start: WarmStart = None, resume: bool = False, **options: Any) -> PruningResult:
        """Search, calibrate, slice and evaluate. A further call reuses what was measured.

        Args:
            warm_start: Agent to start from (policy transfer): a checkpoint's folder or Hub id, or `result.agent`.
            resume: Whether to resume from the state that an interrupted process left in the work folder. On the CPU
                the result is bitwise the same as without the interruption. `save_pretrained` removes that folder.
            options: Options of this prune in place of those of the config, such as `sparsity=0.3`.

        Returns:
            The pruned model and its record; also stored as `self.result`.

        Raises:
            FFPError: If the budget can't be met, the data or the agent can't be used, memory doesn't suffice, an
                option can't change, or the work folder holds the state of another prune.
        """
        self.open_journal(resume)
        return self.finish(self.search(warm_start, **options))

    def sweep(
        self, configs: Iterable[FFPConfig | Plan], warm_start: WarmStart = None, resume: bool = False
    ) -> Iterator[PruningResult]:
        """Prune to one size after another, and yield the results; save each before the next.

        The agent of every search is the start of the next one, which needs half as many candidates.

        Args:
            configs: Options that differ in the budget, or their plans.
            warm_start: As in `prune`, for the first search.
            resume: As in `prune`.

        Raises:
            FFPError: As `prune`.
        """
        asked = [*configs]
        plans = [one for one in asked if isinstance(one, Plan)]
        if len(plans) < len(asked):
            plans = self._make_plans([getattr(one, "asked", one) for one in asked], warm_start is not None)
        self.open_journal(resume)
        agent = warm_start
        for plan in plans:
            result = self.finish(self._search(plan, agent))
            yield result
            agent = agent if result.agent is None else SavedAgent(result.agent, self._saved_in or "AGENT")

    def open_journal(self, resume: bool = False) -> None:
        """Start saving finished work in the work folder, until `save_pretrained`.

        `prune` calls it itself; callers of `search` and `finish` may call it first. Measurements are reused at any
        sparsity and with any `config`.

        Args:
            resume: Whether to resume from the state of an interrupted process.

        Raises:
            FFPError: If the work folder holds the state of another prune, or there is none to resume from.
        """
        if self.work_folder is None:
            if resume:
                raise FFPError("nothing to resume from; set work_folder of FFPPruner")
            return
        if self.measured.journal.folder is not None:  # Opened by an earlier call.
            return
        plan = self.measured.plan
        identity = {
            **self._fingerprints,
            "config": plan.for_stages("measured"),
            "versions": package_versions(),
            "device": device_name(self.model.device),
            "computes in": self.measured.compute_dtypes,
            "data": self.measured.given_data,
            # Those of a given policy.
            "groups": [unit.unit.group for unit in self.measured.unit_variants[0]] if plan.policy else None,
            **({} if self.measured.given_data else processes.on_main(plan.hash_files)),
        }
        # An accelerator would copy from pages of the file, which aren't pinned.
        on_disk = self.options.offload == "disk" or self.model.device.type == "cpu"
        journal = Journal.open(self.work_folder, identity, resume, on_disk)
        self.measured.journal = replace(journal, counter=self.measured.layerwise.counter)

    def _check(self, plan: Plan) -> None:
        """Check, before anything is measured, what needs the model to run."""
        self.measured.check(plan)
        if plan.calibration == "model":
            device, work = self.measured.layerwise.device, self.measured.journal.folder
            check_launch(device, self.options.offload, work is not None, can_shard=False)
        if not self._is_checked:
            check_losses(self.measured.layerwise.losses(FIRST_TOKENS), self.model, self.model_id)
            self._is_checked = True

    @memory_errors()
    def search(self, warm_start: WarmStart = None, **options: Any) -> SearchResult:
        """Search for a policy: the first half of `prune`.

        Args:
            warm_start: As in `prune`.
            options: As in `prune`.

        Raises:
            FFPError: As `prune`.
        """
        plan = self.measured.plan
        if options:
            plan = self._make_plans([replace_options(plan.asked, options)])[0]
        return self._search(plan, warm_start)

    def _search(self, plan: Plan, warm_start: WarmStart) -> SearchResult:
        agent = None if plan.skips_search else load_agent(warm_start, self.options.token)
        if agent is not None:
            check_agent(agent, [unit.unit for unit in self.measured.unit_variants[0]], plan)
        self._check(plan)
        # Text that can't be used is found before anything is saved.
        _ = self.measured.data
        self.measured.trimmed(plan)
        if plan.asked.calibration is None:
            self.measured.journal.value(DECISION, lambda: {"calibration": plan.calibration, "lora": plan.lora})
        times = None
        if plan.speedup is not None or plan.costs is not None:
            # Only the main process reads the file, which it may just have written.
            times = processes.on_main(lambda: read_costs(plan)) or self.measured.block_costs
        # Measure before the stage `search` starts: measurements have their own stages.
        _ = self.measured.dense_losses if plan.compares_policies else self.measured.prepared
        if plan.alternatives:
            plan = choose_vocabulary(self.measured, plan.alternatives)
        policy_search = PolicySearch(self.measured, plan, times)
        tracker = Tracker(self.report_to, f"{Path(self.model_id).name}-{plan.asked.budget_name}", plan.to_dict())
        with policy_search.meter.stage("search"), tracker:
            result = policy_search.run(agent, tracker.log_evaluation)
        if isinstance(plan.costs, str) and processes.is_main() and not expand(plan.costs).exists():
            with convert_errors(lambda error: f"costs {plan.costs} can't be written: {one_line(error)}"):
                expand(plan.costs).parent.mkdir(parents=True, exist_ok=True)
                write_json(expand(plan.costs), result.times)
        return result

    @memory_errors()
    def finish(self, search: SearchResult, **options: Any) -> PruningResult:
        """Calibrate, slice and evaluate a policy: the second half of `prune`.

        Args:
            search: Result of `search`.
            options: Other options of the calibration, to compare several with one policy.

        Returns:
            The pruned model and its record; also stored as `self.result`.

        Raises:
            FFPError: If an option can't change.
        """
        measured, policy = self.measured, search.policy
        plan = recalibrated(search.plan, options) if options else search.plan
        self._check(plan)
        journal = measured.journal.part(plan.for_stages("calibration"), policy.sizes, plan.vocabulary)
        sorted_model = measured.prepared.sorted_model
        evaluated = {"dense": measured.dense_test_losses}
        # With offloaded weights it would take long.
        dense_samples = measured.dense_samples if self.options.offload == "none" else {}
        # The dense model's evaluation is counted in that of the measurements.
        meter = StageMeter(measured.meter, search.cost, counter=measured.layerwise.counter)
        test_losses = partial(measured.test_losses, policy, journal=journal, batch_size=plan.batch_size, meter=meter)
        if plan.reports_searched:
            evaluated["searched"] = test_losses("searched")
        tokenizer, vocabulary = measured.trimmed(plan)
        with meter.stage("calibration"):
            task = CalibrationTask(sorted_model, policy, measured.data, plan, journal, vocabulary)
            calibration = plan.function("calibration")(task)
        if plan.calibration != "none" and vocabulary is None:
            evaluated["calibrated"] = test_losses("calibrated", weights=calibration.weights)
        with meter.stage("slicing"):
            model = sorted_model.slice(
                policy,
                calibration.weights,
                journal=journal,
                homogeneous=plan.method == "homogeneous" or plan.vocabulary_alone,
                vocabulary=vocabulary,
            )
        if vocabulary is not None:
            evaluated["calibrated"] = test_losses("calibrated", model=model, vocabulary=vocabulary)
        with meter.stage("evaluation"):
            samples = processes.on_main(partial(write_samples, model, tokenizer)) if dense_samples else {}
        for stage in processes.from_main([*meter.tokens]):
            meter.tokens[stage] = total_tokens(meter.tokens[stage])
        self.result = PruningResult(
            model=model,
            tokenizer=tokenizer,
            search=search,
            plan=plan,
            base_model=self.model_id,
            pruned_from=self.pruned_from,
            dense_parameters=self.model.num_parameters(),
            test_windows=measured.data.tests,
            losses={name: evaluation.losses for name, evaluation in evaluated.items()},
            samples=[{"prompt": one, "dense": dense_samples[one], "pruned": samples[one]} for one in samples],
            calibration=calibration.record,
            experts=measured.describe_experts(policy, [*evaluated.values()][-1]),
            vocabulary=vocabulary.describe(measured.data.test.tokens) if vocabulary else {},
            cost=meter,
            compute_dtype=measured.compute_dtypes[0],
            revision=self.options.revision,
            trust_remote_code=self.options.trust_remote_code,
            license=self._license,
            given_data=measured.given_data is not None,
        )
        return self.result

    def save_pretrained(self, directory: str | os.PathLike, overwrite: bool = False, keep_work: bool = False) -> None:
        """Write the last result as a checkpoint: weights, code, tokenizer, policy, agent, log, card and plots.

        Of several processes, which all call this, the main one writes.

        Args:
            directory: Folder to write. It is written completely or not at all.
            overwrite: Whether to replace an empty folder, or a checkpoint of optimum-ffp without other files. Output
                of an interrupted run of this prune is always replaced.
            keep_work: Whether to keep the work folder, for prunes at further sparsities.

        Raises:
            FFPError: If nothing has been pruned, or the folder exists and may not be replaced.
        """
        result, journal = self._finished(), self.measured.journal
        processes.on_main(lambda: save_checkpoint(result, directory, overwrite, journal.folder))
        self._saved_in = os.fspath(directory)
        if not keep_work:
            journal.remove()
            self.measured.journal = Journal()

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the last result to the Hub in one commit, from the main process, and return its URL.

        Arguments are as for `checkpoint.pushing.push_checkpoint`. Raises `FFPError` if there is no result, or the
        upload fails.
        """
        return push_result(partial(save_checkpoint, self._finished()), repo_id, **options)

    def _finished(self) -> PruningResult:
        if self.result is None:
            raise FFPError("there is nothing to save yet; call prune() first")
        return self.result
