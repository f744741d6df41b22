"""FFPPruner: the story of a prune, one stage after another."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .allocation.mapping import Budget
from .allocation.policy import PruningPolicy
from .analysis.prepare import Prepared, prepare
from .checkpoint.pareto import ParetoFront
from .checkpoint.result import PruningResult, package_versions
from .checkpoint.saving import find_agent, push_checkpoint, save_checkpoint
from .compression.repair import repair
from .config import FFPConfig
from .data import DataRequest, DataSplits, check_calibration_tokens, load_windows, with_window_length
from .errors import FFPError
from .evaluation import Perplexity
from .modeling.checks import check_model
from .modeling.families import find_family, find_units
from .modeling.loading import LoadOptions, load_dense, pin_commit
from .planning.machine import device_name
from .search.runner import FoundPolicy, PolicySearch
from .utils.batch_size import with_halving_batches
from .utils.precision import autocast_dtype
from .utils.profiling import StageMeter
from .utils.progress import progress_bar
from .utils.resume import Journal, check_work_folder, fingerprint
from .utils.tracking import Tracker, check_trackers


logger = logging.getLogger(__name__)


class FFPPruner:
    """Prunes one model, at one sparsity or several.

    Data, statistics and the sorted model are made once, when first needed, and serve every call of `prune`. Between
    calls `config` may change in what is read later (`sparsity`, `method`, `calibration`, ...); a change in what they
    depend on is an error.

    Args:
        model: The dense model, of a supported family. The pruner owns it: it asks for no gradients any more, and its
            heads and channels are reordered.
        tokenizer: Its tokenizer.
        config: All options.
        model_id: Where the model comes from, for the record.
        work_folder: Where to keep what is finished, so that `prune(resume=True)` of another process can go on from
            there. It holds Gram and Fisher matrices too, and is new, empty or what another prune has left; one process
            uses it at a time. `None` keeps nothing.
        report_to: What to log the search to, live: `"tensorboard"`, `"trackio"`, `"wandb"`.
        options: How the model was loaded, for the record.

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
        model_id: str | None = None,
        work_folder: str | os.PathLike | None = None,
        report_to: Sequence[str] = (),
        options: LoadOptions | None = None,
    ):
        check_trackers(report_to)
        if work_folder is not None:
            # Whether to resume is said later.
            check_work_folder(work_folder, resume=True)
        self.model_id = model_id or getattr(getattr(model, "config", None), "_name_or_path", None) or "the model"
        check_model(model, tokenizer, self.model_id)
        self.report_to, self.options = report_to, options or LoadOptions()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._measured_with = with_window_length(config, model.config)
        self.family = find_family(model.config)
        self.model_units = find_units(model, self.family, config.ffn_multiple)
        self.units = tuple(unit.unit for unit in self.model_units)
        self.meter = StageMeter()
        self.journal = Journal()
        self.work_folder = work_folder
        self._sweeping = False
        # On the search windows: all searches compare with the same.
        self._dense_losses: np.ndarray | None = None
        self.result: PruningResult | None = None
        self.front = ParetoFront()
        # Before its heads and channels are reordered.
        self._fingerprint = fingerprint(model) if work_folder else None
        self._dense_parameters = model.num_parameters()
        self.budget(config.sparsity)
        model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike,
        config: FFPConfig | None = None,
        work_folder: str | os.PathLike | None = None,
        report_to: Sequence[str] = (),
        **options: Any,
    ) -> "FFPPruner":
        """Loads a dense model to prune.

        Args:
            model_id: Hub id, folder, or `.gguf` file.
            config: All options; the default ones if `None`.
            work_folder: Where to keep what is finished, for `prune(resume=True)`.
            report_to: What to log the search to, live: `"tensorboard"`, `"trackio"`, `"wandb"`.
            options: See `LoadOptions`: `device`, `dtype`, `device_map`, `revision`, `token`, `cache_dir`, ...

        Raises:
            FFPError: If the model can't be loaded or pruned, or the sparsity can't be met.
        """
        pinned = pin_commit(os.fspath(model_id), LoadOptions(**options))
        model, tokenizer = load_dense(os.fspath(model_id), pinned)
        return cls(model, tokenizer, config or FFPConfig(), os.fspath(model_id), work_folder, report_to, pinned)

    def budget(self, sparsity: float) -> Budget:
        """Bounds and parameters to spend at a sparsity. Raises `FFPError` if it can't be met."""
        config = self.config
        return Budget(self.units, sparsity, config.min_retention, config.max_retention, config.rate_precision)

    def prune(
        self,
        sparsity: float | None = None,
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None,
        resume: bool = False,
    ) -> PruningResult:
        """Search, calibrate, slice, evaluate.

        Args:
            sparsity: Fraction of the block parameters to remove; `config.sparsity` if `None`.
            warm_start: An agent to go on from (policy transfer): a checkpoint's folder or Hub id, or `result.agent`.
            resume: Whether to go on from what a process that was killed has left in the work folder. The result is
                the same, bit for bit, as if it had not been killed. `save_pretrained` removes that folder.

        Returns:
            The pruned model with its figures; also kept as `self.result`.

        Raises:
            FFPError: If the sparsity can't be met, the data or the agent can't be used, or the work folder holds the
                state of another prune.
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

        The agent's state is the target sparsity, so what it learns at one serves all: the first search may spend all
        of `config.search_steps`, those after it go on from its agent with half of them. Beside every result's policy
        those of the baselines `uniform` and `prior` are evaluated on the search windows, for a Pareto plot.

        Args:
            sparsities: Fractions of the block parameters to remove.
            warm_start: An agent that the first search goes on from.
            resume: As in `prune`. The work folder is removed when the last result has been taken; it stays, to be
                resumed, if the sweep is broken off.

        Yields:
            One result a sparsity, as it is done.

        Raises:
            FFPError: As `prune`; sparsities that can't be met are found before anything expensive.
        """
        sparsities = list(sparsities)
        for sparsity in sparsities:
            self.budget(sparsity)
        self.open_journal(resume)
        self.front = ParetoFront()
        begun_with = warm_start = find_agent(warm_start, self.options.token, self.options.cache_dir)
        self._sweeping = True
        try:
            for number, sparsity in enumerate(sparsities):
                config = self._config_at(sparsity)
                config.search_steps = config.steps_in_sweep(number)
                found = self._find(config, warm_start, with_baselines=True)
                warm_start = found.agent
                result = self.finish(found)
                self.front.add(result)
                result.search |= {
                    "front": self.front.record,
                    "sweep": {"sparsity": sparsities, "search_steps": self.config.search_steps},
                    "warm_start": getattr(begun_with, "source", None),
                }
                yield result
        finally:
            # However it ends: broken off, too.
            self._sweeping = False
        self._close_journal()

    def open_journal(self, resume: bool = False) -> None:
        """Begins to keep what is finished in the work folder, until `save_pretrained`.

        `prune` and `sweep` do that by themselves. Whoever calls `search` and `finish` may do so before. What any of
        them has measured is not measured again, at whatever sparsity and with whatever `config`.

        Args:
            resume: Whether to go on from what a process that was killed has left.

        Raises:
            FFPError: If the work folder holds the state of another prune, or there is none to resume from.
        """
        if self.work_folder is None:
            if resume:
                raise FFPError("there is nothing to resume from: give FFPPruner a work_folder")
            return
        # What an earlier call has kept serves this one too.
        if self.journal.folder is not None:
            return
        identity = {
            "model": self._fingerprint,
            "config": self._measured_with.measured_options,
            "versions": package_versions(),
            "device": device_name(self.model.device),
        }
        # Matrices are factored in another order by more threads.
        self.journal = Journal.open(self.work_folder, identity, resume, notes={"threads": torch.get_num_threads()})

    def _close_journal(self) -> None:
        self.journal.remove()
        self.journal = Journal()

    def search(
        self, sparsity: float | None = None, warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None
    ) -> FoundPolicy:
        """The first half of `prune`: finds the policy. Arguments and errors are the same."""
        return self._find(self._config_at(sparsity), warm_start)

    def finish(self, found: FoundPolicy) -> PruningResult:
        """The second half of `prune`: calibrates, slices and evaluates a policy.

        Args:
            found: What `search` returned; with another `config` the same policy is calibrated another way.

        Returns:
            The pruned model with its figures; also kept as `self.result`.
        """
        config, policy = with_window_length(found.config, self.model.config), found.policy
        self._measured_with.check_change(config)
        data, sorted_model = self.data, self.prepared.sorted_model
        journal = self.journal.part(config.to_dict(), policy.sizes)
        perplexities = {"dense": self.dense_perplexity}
        meter = StageMeter(self.meter)
        if config.reports_searched:
            with meter.stage("evaluation"), sorted_model.applied(policy) as model:
                perplexities["searched"] = self._perplexity(model, "searched", journal)
        with meter.stage("calibration"):
            outputs, calibration = repair(sorted_model, policy, data, config, journal)
        if config.calibration != "none":
            # On views of the dense model, so that there is no second model beside the activations.
            with meter.stage("evaluation"), sorted_model.applied(policy, outputs) as model:
                perplexities["calibrated"] = self._perplexity(model, "calibrated", journal)
        with meter.stage("slicing"):
            pruned = sorted_model.materialise(policy, outputs)
            del outputs
        self.result = PruningResult(
            model=pruned,
            tokenizer=self.tokenizer,
            config=config,
            policy=policy,
            base_model=self.model_id,
            dense_parameters=self._dense_parameters,
            perplexities=perplexities,
            test=data.test,
            search=found.record,
            calibration=calibration,
            log=found.log,
            agent=found.agent,
            cost=meter,
            revision=self.options.revision,
            trust_remote_code=self.options.trust_remote_code,
        )
        return self.result

    def _config_at(self, sparsity: float | None) -> FFPConfig:
        config = with_window_length(self.config, self.model.config)
        self._measured_with.check_change(config)
        config.sparsity = self.config.sparsity if sparsity is None else sparsity
        return config

    def _find(
        self,
        config: FFPConfig,
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None,
        with_baselines: bool = False,
    ) -> FoundPolicy:
        self.budget(config.sparsity)
        agent = find_agent(warm_start, self.options.token, self.options.cache_dir)
        data, prepared = self.data, self.prepared
        self.meter.seconds.pop("search", None)
        with self.meter.stage("search"):
            dtype = autocast_dtype(self.model, config.search_dtype)
            policy_search = PolicySearch(
                prepared, data.search, self.budget, config, dtype, self.journal, self._dense_losses
            )
            run = f"{Path(self.model_id).name}-{config.sparsity:g}"
            with Tracker(self.report_to, run, config.to_dict()) as tracker:
                found = policy_search.run(agent, tracker.log)
            self._dense_losses = policy_search.evaluator.dense_losses
            # There may be less text than was asked for.
            found.record |= {"calibrated_on": data.calibration.describe(), "repeated_windows": data.repeated()}
            found.record["warm_start"] = getattr(agent, "source", None)
            if with_baselines:
                found.record["baselines"] = policy_search.baselines()
        return found

    @cached_property
    def data(self) -> DataSplits:
        """Calibration, search and test windows."""
        config, request = self._measured_with, DataRequest.of(self._measured_with)
        sources = config.dataset, config.eval_dataset, self.tokenizer, self.model
        with self.meter.stage("data"):
            data = DataSplits.from_dict(self.journal.value("data", lambda: load_windows(*sources, request).to_dict()))
        check_calibration_tokens(
            data.calibration.tokens.numel(), max(unit.output.module.in_features for unit in self.model_units)
        )
        for warning in data.warnings(request):
            logger.warning(warning)
        return data

    @cached_property
    def dense_perplexity(self) -> float:
        """Perplexity of the dense model on the test windows."""
        with (
            self.meter.stage("evaluation"),
            self.prepared.sorted_model.applied(PruningPolicy.dense(self.units)) as model,
        ):
            return self._perplexity(model, "dense", self.journal)

    @cached_property
    def prepared(self) -> Prepared:
        """Statistics, sorted model, ridge factors and loss curves."""
        windows = self.data.calibration.tokens
        config = self._measured_with
        return prepare(self.model, self.model_units, self.family, config, windows, self.meter, self.journal)

    def _perplexity(self, model: PreTrainedModel, name: str, journal: Journal) -> float:
        windows = self.data.test.tokens

        def measure(batch_size: int) -> float:
            with progress_bar(len(windows), f"Perplexity, {name}", "window") as bar:
                figures = Perplexity().compute(
                    predictions=windows.tolist(), model=model, batch_size=batch_size, on_batch=bar.update
                )
            return figures["perplexity"]

        return journal.value(f"perplexity-{name}", lambda: with_halving_batches(measure, self.config.batch_size))

    def save_pretrained(self, directory: str | os.PathLike, overwrite: bool = False) -> None:
        """Writes the last result as a checkpoint: weights, code, tokenizer, policy, agent, log, card and plots.

        Args:
            directory: The folder to write. It appears whole or not at all.
            overwrite: Whether to replace an empty folder, or a checkpoint of ours without other files.

        Raises:
            FFPError: If nothing is pruned yet, or the folder exists and may not be replaced.
        """
        save_checkpoint(self._finished(), directory, overwrite, self.journal.folder)
        if not self._sweeping:
            self._close_journal()

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Puts the last result on the Hub in one commit.

        Returns:
            The address of the commit.

        Raises:
            FFPError: If nothing is pruned yet, or the Hub refuses.
        """
        return push_checkpoint(self._finished(), repo_id, private, token)

    def _finished(self) -> PruningResult:
        if self.result is None:
            raise FFPError("there is nothing to save yet; call prune() first")
        return self.result
