"""FFPPruner: runs the stages of a prune."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .analysis.measurements import Measurements, adapted
from .checkpoint.pushing import push_result
from .checkpoint.result import PruningResult, SearchResult, package_versions
from .checkpoint.saving import load_agent, save_checkpoint
from .compression.calibration import CalibrationTask
from .compression.training.end_to_end import check_launch
from .config import FFPConfig
from .config.prune import TRAINING_SUFFICES, find_choice
from .data import DataSplits
from .data.samples import write_samples
from .engine.token_counter import total_tokens
from .errors import FFPError, convert_errors, one_line
from .hub.license import read_license
from .modeling.checks import FIRST_TOKENS, check_losses, check_model
from .modeling.loading import (
    LoadOptions,
    find_dense,
    load_dense,
    load_pruned,
    pin_commit,
    read_model_config,
    resolve_device,
)
from .modeling.padding import padded
from .planning.estimate import Machine, estimate_prune
from .search.runner import PolicySearch, check_budget
from .search.task import check_agent
from .utils import processes
from .utils.batch_size import memory_errors
from .utils.device_memory import device_name
from .utils.folders import expand
from .utils.json import write_json
from .utils.profiling import StageMeter
from .utils.resume import EXPERTS, Journal, fingerprint
from .utils.tracking import Tracker, check_trackers


logger = logging.getLogger(__name__)
NO_SEARCH = (
    f"skipped: when {100 * TRAINING_SUFFICES:g} % or more of the blocks are removed, training makes up for what a "
    "search gains; --method ffp searches"
)


class FFPPruner:
    """Prunes a model, to one or several sizes.

    Data, statistics and the sorted model (`measured`) are computed once, on first use, and shared by all calls of
    `prune`. Between calls `config` may change in options that are read later (`params`, `sparsity`, `method`,
    `calibration`, ...); changing an option that `measured` depends on is an error. Several processes, such as those
    of `accelerate launch`, share the work and all get the results; all of them must make the same calls.

    Args:
        model: The dense model, of a supported family. It is changed in place: `requires_grad` is turned off, and its
            heads and channels are reordered, which leaves its outputs as they are. The pruned model is another one,
            `result.model`.
        tokenizer: Tokenizer of the model.
        config: Options of the prune.
        model_id: Hub id or path of the model, for the record.
        work_folder: Folder for finished work, including Gram and Fisher matrices, so that `prune(resume=True)` of
            another process can resume from it. It must be new, empty or left by another prune, and is used by one
            process at a time. `None` saves nothing.
        report_to: Where to log the search: one or several of `"tensorboard"`, `"trackio"`, `"wandb"`.
        options: How the model was loaded: where its layers run, and how datasets of the Hub are reached.
        data: Windows to use instead of the datasets of the config.
        dense: The original dense model, the teacher, if `model` was pruned before (`padded`).
        pruned_from: Name of the pruned model, for the record. `model_id` and `options` are those of the dense one.

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
        config: FFPConfig,
        model_id: str | os.PathLike | None = None,
        work_folder: str | os.PathLike | None = None,
        report_to: str | Sequence[str] = (),
        options: LoadOptions | None = None,
        data: DataSplits | None = None,
        dense: PreTrainedModel | None = None,
        pruned_from: str | None = None,
    ):
        self.report_to, resolved = check_trackers(report_to), config.resolve()
        name = model_id or getattr(getattr(model, "config", None), "_name_or_path", None) or "the model"
        self.model_id = os.fspath(name)
        check_model(model, tokenizer, self.model_id)
        for option in ("method", "criterion", "mapping", "calibration"):
            if (choice := getattr(resolved, option)) is not None:
                find_choice(option, choice)
        self.options, self.work_folder = options or LoadOptions(), work_folder
        self.model, self.tokenizer, self.config = model, tokenizer, config
        if self.options.offload == "disk" and work_folder is None:
            raise FFPError("offload 'disk' needs a work_folder, which stores what doesn't fit into memory")
        device = None if self.options.offload == "none" else resolve_device(self.options.device)
        # Computed before weights are converted and reordered.
        self._fingerprints = {
            name: fingerprint(one)
            for name, one in (("model", model), ("dense", dense))
            if work_folder and one is not None
        }
        self.measured = Measurements(
            model, tokenizer, config, data=data, device=device, token=self.options.token, dense=dense
        )
        check_budget(model, self.measured.unit_variants, self.measured.config)
        check_losses(self.measured.layerwise.losses(FIRST_TOKENS), model, self.model_id)
        self.result: PruningResult | None = None
        self.pruned_from = pruned_from
        self._license = read_license(self.model_id, **self.options.hub())
        if config.base_model and not self._license:
            self._license = read_license(config.base_model, token=self.options.token)
        model.eval().requires_grad_(False)

    @classmethod
    @memory_errors()
    def from_pretrained(
        cls,
        model_id: str | os.PathLike,
        config: FFPConfig | None = None,
        work_folder: str | os.PathLike | None = None,
        report_to: str | Sequence[str] = (),
        **options: Any,
    ) -> "FFPPruner":
        """Load a dense model to prune, or a pruned one to prune further, along with its dense model.

        Args:
            model_id: Hub id, folder, or `.gguf` file.
            config: Options of the prune; the defaults if `None`.
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
        model_config = read_model_config(name, pinned)
        if pinned.offload == "auto":
            estimate = estimate_prune(model_config, config, pinned, saves_work=work_folder is not None)
            pinned = replace(pinned, offload=processes.from_main(estimate.offload))
        dense_id, dense_options, rows = find_dense(name, pinned)
        model, tokenizer = load_dense(dense_id, dense_options, work_folder and expand(work_folder) / EXPERTS)
        again = {}
        if rows:
            again = {"dense": model, "pruned_from": f"{name}@{pinned.revision}" if pinned.revision else name}
            pruned, tokenizer = load_pruned(name, pinned)
            model = padded(model, pruned, rows)
        return cls(model, tokenizer, config, dense_id, work_folder, report_to, dense_options, **again)

    def prune(
        self,
        sparsity: float | None = None,
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None,
        resume: bool = False,
    ) -> PruningResult:
        """Search, calibrate, slice and evaluate. A further call reuses what was measured.

        Args:
            sparsity: Fraction of the block parameters to remove, instead of `config.sparsity`.
            warm_start: Agent to start from (policy transfer): a checkpoint's folder or Hub id, or `result.agent`.
            resume: Whether to resume from the state that an interrupted process left in the work folder. On the CPU
                the result is bitwise the same as without the interruption. `save_pretrained` removes that folder.

        Returns:
            The pruned model and its record; also stored as `self.result`.

        Raises:
            FFPError: If the budget can't be met, the data or the agent can't be used, memory doesn't suffice, or the
                work folder holds the state of another prune.
        """
        self.open_journal(resume)
        return self.finish(self.search(sparsity, warm_start))

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
        identity = {
            **self._fingerprints,
            "config": self.measured.config.for_stages("measured"),
            "versions": package_versions(),
            "device": device_name(self.model.device),
            "computes in": self.measured.compute_dtypes,
            "data": self.measured.given_data,
            # Those of a given policy.
            "groups": [unit.unit.group for unit in self.measured.unit_variants[0]] if self.config.policy else None,
            **({} if self.measured.given_data else processes.on_main(self.measured.config.hash_files)),
        }
        on_disk = self.options.offload == "disk"
        self.measured.journal = Journal.open(self.work_folder, identity, resume=resume, on_disk=on_disk)

    def _with_costs(self, config: FFPConfig) -> FFPConfig:
        """Return the config with measured times, if it needs them."""
        if config.speedup is None and config.costs is None:
            return config
        # Only the main process reads the file, which it may just have written.
        return replace(config, costs=processes.on_main(lambda: config.cost_table) or self.measured.block_costs)

    def _with_calibration(self, config: FFPConfig) -> FFPConfig:
        """Return the config with the calibration that memory suffices for, which is chosen once, if it has none.

        Raises:
            FFPError: If the calibration can't run with these weights and processes.
        """

        def choose() -> dict[str, Any]:
            machine = Machine.of(str(self.measured.layerwise.device))
            estimate = estimate_prune(self.model.config, config, self.options, machine=machine)
            return {"calibration": estimate.calibration, "lora": estimate.lora}

        if config.calibration is None:
            # Text that can't be used is found before anything is saved, and the memory is that before measurements.
            _ = self.measured.data
            journal = self.measured.journal.part(config.lora)
            chosen = journal.value("calibration", partial(processes.on_main, choose))
            adapters = f" by adapters of rank {chosen['lora']}" if chosen["lora"] else ""
            logger.info("using calibration %s%s, which fits into memory", chosen["calibration"], adapters)
            config = replace(config, **chosen)
        if config.calibration == "model":
            device, work = self.measured.layerwise.device, self.measured.journal.folder
            check_launch(device, self.options.offload, work is not None, can_shard=False)
        return config

    @memory_errors()
    def search(
        self,
        sparsity: float | None = None,
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None,
        config: FFPConfig | None = None,
    ) -> SearchResult:
        """Search for a policy: the first half of `prune`.

        Args:
            sparsity: As in `prune`.
            warm_start: As in `prune`.
            config: Options of this search; `self.config` if `None`.

        Raises:
            FFPError: As `prune`, or if the config differs in options that `measured` depends on.
        """
        asked = adapted(config or self.config, self.model.config)
        costs = asked.costs if isinstance(asked.costs, str) else None
        asked = self._with_costs(asked if sparsity is None else replace(asked, sparsity=sparsity))
        budget = check_budget(self.model, self.measured.unit_variants, self.measured.resolved(asked))
        config = self.measured.resolved(asked.with_method(budget.sparsity))
        self.measured.check(config)
        skips = asked.method is None and config.method == "no-search"
        agent = None if skips else load_agent(warm_start, self.options.token)
        if agent is not None:
            check_agent(agent, [unit.unit for unit in self.measured.unit_variants[0]], config)
        config = self._with_calibration(config)
        # Measure before the stage `search` starts: measurements have their own stages.
        _ = self.measured.dense_losses if config.compares_policies else self.measured.prepared
        meter = StageMeter(counter=self.measured.layerwise.counter)
        with meter.stage("search"):
            policy_search = PolicySearch(self.measured, config)
            run = f"{Path(self.model_id).name}-{config.budget_name}"
            with Tracker(self.report_to, run, config.to_dict()) as tracker:
                result = policy_search.run(agent, tracker.log_evaluation)
        if costs and processes.is_main() and not expand(costs).exists():
            with convert_errors(lambda error: f"costs {costs} can't be written: {one_line(error)}"):
                expand(costs).parent.mkdir(parents=True, exist_ok=True)
                write_json(expand(costs), result.config.costs)
        result.cost, result.note = meter, NO_SEARCH if skips else result.note
        return result

    @memory_errors()
    def finish(self, search: SearchResult, config: FFPConfig | None = None) -> PruningResult:
        """Calibrate, slice and evaluate a policy: the second half of `prune`.

        Args:
            search: Result of `search`.
            config: Options of calibration, to compare several with one policy; those of the search if `None`.

        Returns:
            The pruned model and its record; also stored as `self.result`.

        Raises:
            FFPError: If the config differs in options that `measured` depends on.
        """
        measured, policy = self.measured, search.policy
        calibrated_with = (config or search.config).for_stages("calibration")
        config = replace(search.config, **calibrated_with)
        measured.check(config)
        config = self._with_calibration(config)
        journal = measured.journal.part(config.for_stages("calibration"), policy.sizes)
        sorted_model = measured.prepared.sorted_model
        evaluated = {"dense": measured.dense_test_losses}
        # With offloaded weights it would take long.
        dense_samples = measured.dense_samples if self.options.offload == "none" else {}
        # The dense model's evaluation is counted in that of the measurements.
        meter = StageMeter(measured.meter, search.cost, counter=measured.layerwise.counter)
        test_losses = partial(measured.test_losses, policy, journal=journal, batch_size=config.batch_size, meter=meter)
        if config.reports_searched:
            evaluated["searched"] = test_losses("searched")
        with meter.stage("calibration"):
            task = CalibrationTask(sorted_model, policy, measured.data, config, journal)
            calibration = find_choice("calibration", config.calibration).calibrate(task)
        if config.calibration != "none":
            evaluated["calibrated"] = test_losses("calibrated", weights=calibration.weights)
        with meter.stage("slicing"):
            model = sorted_model.materialize(
                policy, calibration.weights, journal=journal, homogeneous=config.method == "homogeneous"
            )
        with meter.stage("evaluation"):
            samples = processes.on_main(partial(write_samples, model, self.tokenizer)) if dense_samples else {}
        for stage in processes.from_main([*meter.tokens]):
            meter.tokens[stage] = total_tokens(meter.tokens[stage])
        self.result = PruningResult(
            model=model,
            tokenizer=self.tokenizer,
            search=search,
            config=config,
            base_model=self.model_id,
            pruned_from=self.pruned_from,
            dense_parameters=self.model.num_parameters(),
            test_windows=measured.data.tests,
            losses={name: evaluation.losses for name, evaluation in evaluated.items()},
            samples=[{"prompt": one, "dense": dense_samples[one], "pruned": samples[one]} for one in samples],
            calibration=calibration.record,
            experts=measured.describe_experts(policy, [*evaluated.values()][-1]),
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
