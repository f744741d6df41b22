"""FFPPruner: runs the stages of a prune."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .allocation.budget import Budget
from .analysis.measurements import Measurements
from .checkpoint.pareto import ParetoFront
from .checkpoint.pushing import PushToHubMixin
from .checkpoint.result import FoundPolicy, PruningResult, package_versions
from .checkpoint.saving import find_agent, save_checkpoint
from .compression.calibration import calibrate
from .config import FFPConfig
from .config.fields import AGENT, CALIBRATION, find_choice
from .data import DataSplits
from .errors import FFPError
from .hub.license import read_license
from .modeling import is_homogeneous
from .modeling.checks import FIRST_TOKENS, check_losses, check_model
from .modeling.loading import LoadOptions, load_dense, pin_commit, read_model_config, resolve_device
from .planning.estimate import estimate_prune
from .search.runner import PolicySearch, budget_at, check_budget
from .search.task import check_agent
from .utils import processes
from .utils.batch_size import memory_errors
from .utils.device_memory import device_name
from .utils.profiling import StageMeter
from .utils.resume import Journal, check_work_folder, fingerprint
from .utils.tracking import Tracker, check_trackers


class FFPPruner(PushToHubMixin):
    """Prunes a model, at one or several sparsities.

    Data, statistics and the sorted model (`measured`) are computed once, on first use, and shared by all calls of
    `prune`. Between calls `config` may change in options that are read later (`sparsity`, `method`, `calibration`,
    ...); changing an option that `measured` depends on is an error. Several processes, as of `accelerate launch`,
    share the work and all have the results; every one of them must make the same calls.

    Args:
        model: The dense model, of a supported family. The pruner modifies it: `requires_grad` is turned off, and its
            heads and channels are reordered.
        tokenizer: Tokenizer of the model.
        config: Options of the prune.
        model_id: Hub id or path of the model, for the record.
        work_folder: Folder for finished work, including Gram and Fisher matrices, so that `prune(resume=True)` of
            another process can resume from it. It must be new, empty or left by another prune, and is used by one
            process at a time. `None` saves nothing.
        report_to: Where to log the search: one or several of `"tensorboard"`, `"trackio"`, `"wandb"`.
        options: How the model was loaded: where its layers run, and how datasets of the Hub are reached.
        data: Windows to use instead of the datasets of the config.

    Attributes:
        measured: Windows, sorted model and losses of the dense model, which do not depend on the search.
        result: Last result of `finish`, `prune` or `sweep`.

    Raises:
        FFPError: If the model can't be pruned, or the sparsity can't be met.

    Example:
        >>> pruner = FFPPruner.from_pretrained("meta-llama/Llama-2-7b-hf", FFPConfig(sparsity=0.2))
        >>> pruner.prune()
        >>> pruner.save_pretrained("Llama-2-7b-hf-ffp-20")
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
    ):
        self.report_to = check_trackers(report_to)
        if work_folder is not None:
            # `prune` and `sweep` check `resume`.
            check_work_folder(work_folder, resume=True)
        name = model_id or getattr(getattr(model, "config", None), "_name_or_path", None) or "the model"
        self.model_id = os.fspath(name)
        check_model(model, tokenizer, self.model_id)
        self.options, self.work_folder = options or LoadOptions(), work_folder
        self.model, self.tokenizer, self.config = model, tokenizer, config
        offloads = self.options.offload != "none"
        if self.options.offload == "disk" and work_folder is None:
            raise FFPError("offload 'disk' needs a work_folder, for what doesn't fit into memory either")
        device = resolve_device(self.options.device) if offloads else None
        # Computed before weights are converted, heads and channels reordered.
        self._fingerprint = fingerprint(model) if work_folder else None
        self.measured = Measurements(model, tokenizer, config, data, device, self.options.token)
        check_losses(self.measured.layerwise.losses(FIRST_TOKENS), model, self.model_id)
        self.result: PruningResult | None = None
        self._license = read_license(self.model_id, **self.options.hub())
        self._dense_parameters = model.num_parameters()
        self._check_budget(config)
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
        """Loads a dense model to prune.

        Args:
            model_id: Hub id, folder, or `.gguf` file.
            config: Options of the prune; the defaults if `None`.
            work_folder: Folder for finished work, for `prune(resume=True)`.
            report_to: Where to log the search: one or several of `"tensorboard"`, `"trackio"`, `"wandb"`.
            options: Fields of `LoadOptions`: `device`, `dtype`, `offload` (by default `"auto"`), `revision`,
                `token`, ...

        Raises:
            FFPError: If the model can't be loaded or pruned, or the sparsity can't be met.
        """
        processes.join(options.get("device"))
        config, name = config or FFPConfig(), os.fspath(model_id)
        pinned = pin_commit(name, LoadOptions(**{"offload": "auto"} | options))
        if pinned.offload == "auto":
            estimate = estimate_prune(
                read_model_config(name, pinned),
                config,
                pinned,
                saves_work=work_folder is not None,
                local_processes=processes.local_count(),
            )
            pinned = replace(pinned, offload=processes.from_main(estimate.offload))
        model, tokenizer = load_dense(name, pinned)
        return cls(model, tokenizer, config, name, work_folder, report_to, pinned)

    def budget(self, sparsity: float) -> Budget:
        """The parameter budget and retention bounds at a sparsity. Raises `FFPError` if it can't be met.

        The model is measured first where that decides what attention loses (option `attention`).
        """
        return budget_at(self.measured.units, sparsity, self.config)

    def prune(
        self,
        sparsity: float | None = None,
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None,
        resume: bool = False,
    ) -> PruningResult:
        """Searches, calibrates, slices and evaluates.

        Args:
            sparsity: Fraction of the block parameters to remove; `config.sparsity` if `None`.
            warm_start: Agent to start from (policy transfer): a checkpoint's folder or Hub id, or `result.agent`.
            resume: Whether to resume from the state that an interrupted process left in the work folder. On the CPU
                the result is bitwise the same as without the interruption. `save_pretrained` removes that folder.

        Returns:
            The pruned model and its record; also stored as `self.result`.

        Raises:
            FFPError: If the sparsity can't be met, the data or the agent can't be used, memory doesn't suffice, or the
                work folder holds the state of another prune.
        """
        self.open_journal(resume)
        return self.finish(self.search(sparsity, warm_start))

    def sweep(
        self,
        sparsities: Iterable[float],
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None,
        resume: bool = False,
    ) -> Iterator[PruningResult]:
        """Prunes at several sparsities with one agent.

        The agent's state is the target sparsity, so that it transfers between sparsities: the first search takes all
        of `config.search_steps`, each later one of method `ffp` starts from its agent and takes half of them. The
        policies of the baselines `uniform` and `no-search` are evaluated on the search windows too, for a Pareto plot.

        Args:
            sparsities: Fractions of the block parameters to remove.
            warm_start: Agent that the first search starts from.
            resume: As in `prune`. The work folder is removed after the last result has been consumed; it remains, to
                be resumed, if the sweep is interrupted.

        Yields:
            One result per sparsity.

        Raises:
            FFPError: As `prune`; all sparsities are checked before anything expensive.
        """
        sparsities = list(sparsities)
        for sparsity in sparsities:
            self._check_budget(self.config.replace(sparsity=sparsity))
        self.open_journal(resume)
        agent = find_agent(warm_start, self.options.token)
        begun_with, front = getattr(agent, "source", None), ParetoFront()
        sweep = {"sparsity": sparsities, "search_steps": self.config.search_steps}
        for config in self.config.sweep(sparsities):
            found = self._find(self._searched_with(config, None), agent, with_baselines=True)
            agent = find_agent(found.agent)
            found.search.sweep, found.search.warm_start = sweep, begun_with
            result = self.finish(found)
            front.add(result)
            found.search.front = front.record
            yield result
        self._close_journal()

    def open_journal(self, resume: bool = False) -> None:
        """Starts saving finished work in the work folder, until `save_pretrained`.

        `prune` and `sweep` call it themselves; callers of `search` and `finish` may call it first. Measurements are
        reused at any sparsity and with any `config`.

        Args:
            resume: Whether to resume from the state of an interrupted process.

        Raises:
            FFPError: If the work folder holds the state of another prune, or there is none to resume from.
        """
        if self.work_folder is None:
            if resume:
                raise FFPError("there is nothing to resume from: give FFPPruner a work_folder")
            return
        # The journal of an earlier call is reused.
        if self.measured.journal.folder is not None:
            return
        identity = {
            "model": self._fingerprint,
            "config": self.measured.config.measured_options,
            "versions": package_versions(),
            "device": device_name(self.model.device),
            "computes in": self.measured.compute_dtypes,
            "data": self.measured.given_data,
        }
        self.measured.journal = Journal.open(self.work_folder, identity, resume, self.options.offload == "disk")

    def _close_journal(self) -> None:
        self.measured.journal.remove()
        self.measured.journal = Journal()

    def search(
        self,
        sparsity: float | None = None,
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None,
        config: FFPConfig | None = None,
    ) -> FoundPolicy:
        """Finds the policy: the first half of `prune`.

        Args:
            sparsity: As in `prune`.
            warm_start: As in `prune`.
            config: Options of this search; `self.config` if `None`.

        Raises:
            FFPError: As `prune`, or if the config differs in options that `measured` depends on.
        """
        agent = find_agent(warm_start, self.options.token)
        return self._find(self._searched_with(config or self.config, sparsity), agent)

    @memory_errors()
    def finish(self, found: FoundPolicy, config: FFPConfig | None = None) -> PruningResult:
        """Calibrates, slices and evaluates a policy: the second half of `prune`.

        Args:
            found: Policy from `search`.
            config: Options of calibration, to calibrate one policy in several ways; those of the search if `None`.

        Returns:
            The pruned model and its record; also stored as `self.result`.

        Raises:
            FFPError: If the config differs in options that `measured` depends on.
        """
        measured, policy = self.measured, found.policy
        config = found.config.replace(**{name: getattr(config or found.config, name) for name in CALIBRATION})
        measured.check(config)
        calibrated_with = {name: getattr(config, name) for name in CALIBRATION}
        sorted_model, journal = measured.prepared.sorted_model, measured.journal.part(calibrated_with, policy.sizes)
        losses = {"dense": measured.dense_test_losses}
        # The dense model's evaluation is counted in that of the measurements.
        meter = StageMeter(measured.meter, found.cost)
        tested = journal, config.batch_size, meter
        if config.reports_searched:
            losses["searched"] = measured.test_losses(policy, None, "searched", *tested)
        with meter.stage("calibration"):
            weights, calibration, tokens = calibrate(
                sorted_model, policy, measured.data, measured.start_token, config, journal
            )
        meter.count("calibration", tokens)
        if config.calibration != "none":
            losses["calibrated"] = measured.test_losses(policy, weights, "calibrated", *tested)
        with meter.stage("slicing"):
            pruned = sorted_model.materialise(policy, weights, journal, config.method == "homogeneous")
            del weights
        self.result = PruningResult(
            model=pruned,
            tokenizer=self.tokenizer,
            found=found,
            config=config,
            base_model=self.model_id,
            dense_parameters=self._dense_parameters,
            test_windows=measured.data.tests,
            losses=losses,
            calibration=calibration,
            cost=meter,
            compute_dtype=measured.compute_dtypes[0],
            revision=self.options.revision,
            trust_remote_code=self.options.trust_remote_code,
            license=self._license,
            given_data=measured.given_data is not None,
        )
        return self.result

    def _searched_with(self, config: FFPConfig, sparsity: float | None) -> FFPConfig:
        """Copies the config with a sparsity, after checking that it matches the measurements."""
        # An option may have been set to what isn't allowed.
        config = self.measured.resolved(config).replace()
        self.measured.check(config)
        return config if sparsity is None else config.replace(sparsity=sparsity)

    def _check_budget(self, config: FFPConfig) -> None:
        shapes = ([unit.unit for unit in units] for units in self.measured.ways)
        possible = partial(is_homogeneous, self.measured.model, self.measured.layerwise.family)
        check_budget(shapes, config.sparsity, config, possible)

    @memory_errors()
    def _find(
        self, config: FFPConfig, agent: Mapping[str, np.ndarray] | None, with_baselines: bool = False
    ) -> FoundPolicy:
        if agent is not None and not AGENT.holds(config):
            raise FFPError(f"method {config.method!r} has no agent; leave out warm_start, or choose method 'ffp'")
        self._check_budget(config)
        if agent is not None:
            units = [unit.unit for unit in self.measured.ways[0]]
            find_choice("agent", config.agent).check_state(agent, units, config)
            check_agent(agent, units)
        # Measured here, outside the stage `search`: the measurements have stages of their own.
        _ = self.measured.prepared
        meter = StageMeter()
        with meter.stage("search"):
            policy_search = PolicySearch(self.measured, config)
            run = f"{Path(self.model_id).name}-{config.sparsity:g}"
            with Tracker(self.report_to, run, config.to_dict()) as tracker:
                found = policy_search.run(agent, tracker.log_evaluation, with_baselines)
        meter.count("search", found.search.tokens_evaluated)
        found.cost = meter
        return found

    def save_pretrained(self, directory: str | os.PathLike, overwrite: bool = False) -> None:
        """Writes the last result as a checkpoint: weights, code, tokenizer, policy, agent, log, card and plots.

        Of several processes, which all call this, the main one writes.

        Args:
            directory: Folder to write. It is written completely or not at all.
            overwrite: Whether to replace an empty folder, or a checkpoint of optimum-ffp without other files. One that
                this prune has written before it was killed and resumed is replaced in any case.

        Raises:
            FFPError: If nothing has been pruned, or the folder exists and may not be replaced.
        """
        write, journal = self._writer(), self.measured.journal
        processes.on_main(lambda: write(directory, overwrite, journal.folder))
        # A sweep closes its journal after the last result.
        if self.result.search.sweep is None:
            self._close_journal()

    def _writer(self) -> Callable[..., Path]:
        return partial(save_checkpoint, self._finished())

    def _finished(self) -> PruningResult:
        if self.result is None:
            raise FFPError("there is nothing to save yet; call prune() first")
        return self.result
