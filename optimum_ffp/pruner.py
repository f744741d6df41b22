"""FFPPruner: the story of a prune, one stage after another."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .candidates import CandidateEvaluator
from .checkpoint import load_agent, push_checkpoint, save_checkpoint
from .config import FFPConfig
from .data import DataRequest, DataSplits, load_windows
from .errors import FFPError
from .evaluation import Perplexity, to_perplexity
from .families import find_units, get_family
from .loading import LoadOptions, load_dense
from .mapping import MAPPINGS, Budget, uniform
from .policy import PruningPolicy
from .precision import autocast_dtype
from .preparation import Prepared, prepare
from .progress import progress_bar
from .result import PruningResult
from .search import NO_SEARCH, SearchResult, SearchTask, search
from .sequential import calibrate_sequentially
from .stages import StageMeter


class FFPPruner:
    """Prunes one model, at one sparsity or several.

    Data, statistics and the sorted model are made once, when first needed, and serve every call of `prune`.

    Args:
        model: The dense model, of a supported family. The pruner owns it: its heads and channels are reordered.
        tokenizer: Its tokenizer.
        config: All knobs.
        model_id: Where the model comes from, for the record.

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
    ):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.model_id = model_id or model.config._name_or_path or "the model"
        self.family = get_family(model.config.model_type)
        self.model_units = find_units(model, self.family, config.ffn_multiple)
        self.units = tuple(unit.unit for unit in self.model_units)
        self.meter = StageMeter()
        self.result: PruningResult | None = None
        self._dense_parameters = model.num_parameters()
        self.budget(config.sparsity)

    @classmethod
    def from_pretrained(
        cls, model_id: str | os.PathLike, config: FFPConfig | None = None, **options: Any
    ) -> "FFPPruner":
        """Loads a dense model to prune.

        Args:
            model_id: Hub id, folder, or `.gguf` file.
            config: All knobs; the default ones if `None`.
            options: See `LoadOptions`: `device`, `dtype`, `device_map`, `revision`, `token`, `cache_dir`, ...

        Raises:
            FFPError: If the model can't be loaded or pruned, or the sparsity can't be met.
        """
        model, tokenizer = load_dense(os.fspath(model_id), LoadOptions(**options))
        return cls(model, tokenizer, config or FFPConfig(), os.fspath(model_id))

    def budget(self, sparsity: float) -> Budget:
        """Bounds and parameters to spend at a sparsity. Raises `FFPError` if it can't be met."""
        config = self.config
        return Budget(self.units, sparsity, config.min_retention, config.max_retention, config.rate_precision)

    def prune(
        self, sparsity: float | None = None, warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None
    ) -> PruningResult:
        """Search, calibrate, slice, evaluate.

        Args:
            sparsity: Fraction of the block parameters to remove; `config.sparsity` if `None`.
            warm_start: An agent to go on from (policy transfer): a checkpoint's folder or Hub id, or `result.agent`.

        Returns:
            The pruned model with its figures; also kept as `self.result`.

        Raises:
            FFPError: If the sparsity can't be met, or the data or the agent can't be used.
        """
        config = copy.deepcopy(self.config)
        config.sparsity = self.config.sparsity if sparsity is None else sparsity
        return self._prune(config, warm_start)

    def sweep(
        self, sparsities: Iterable[float], warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None = None
    ) -> Iterator[PruningResult]:
        """Prunes at several sparsities with one agent.

        The agent's state is the target sparsity, so what it learns at one serves all: the first search may spend all
        of `config.search_steps`, those after it go on from its agent with a quarter. Beside every result's policy
        those of the baselines `uniform` and `prior` are evaluated on the search windows, for a Pareto plot.

        Args:
            sparsities: Fractions of the block parameters to remove.
            warm_start: An agent that the first search goes on from.

        Yields:
            One result a sparsity, as it is done.

        Raises:
            FFPError: As `prune`; sparsities that can't be met are found before anything expensive.
        """
        configs = []
        for sparsity in sparsities:
            self.budget(sparsity)
            config = copy.deepcopy(self.config)
            config.sparsity = sparsity
            if configs:
                config.search_steps = max(1, config.search_steps // 4)
            configs.append(config)
        for config in configs:
            result = self._prune(config, warm_start, with_baselines=True)
            warm_start = result.agent
            yield result

    def _prune(
        self,
        config: FFPConfig,
        warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None,
        with_baselines: bool = False,
    ) -> PruningResult:
        self.budget(config.sparsity)
        if isinstance(warm_start, (str, os.PathLike)):
            warm_start = load_agent(warm_start)
        data, nested = self.data, self.prepared.nested
        dense_perplexity = self.dense_perplexity
        meter = StageMeter(self.meter)

        with meter.stage("search"):
            found, evaluator = self._search(config, warm_start)
            record = self._describe_search(config, found, evaluator)
            if with_baselines:
                record["baselines"] = self._baselines(config, evaluator)
        with meter.stage("evaluation"), nested.applied(found.policy) as model:
            perplexities = {"dense": dense_perplexity, "searched": self._perplexity(model, "searched")}
        with meter.stage("calibration"):
            outputs, calibration = self._calibrate(config, found.policy)
            pruned = nested.materialise(found.policy, outputs)
        if config.calibration != "none":
            with meter.stage("evaluation"):
                perplexities["calibrated"] = self._perplexity(pruned, "calibrated")
        self.result = PruningResult(
            model=pruned,
            tokenizer=self.tokenizer,
            config=config,
            policy=found.policy,
            base_model=self.model_id,
            dense_parameters=self._dense_parameters,
            perplexities=perplexities,
            test=data.test,
            search=record,
            calibration=calibration,
            log=found.log,
            agent=found.agent,
            cost=meter,
        )
        return self.result

    @cached_property
    def data(self) -> DataSplits:
        """Calibration, search and test windows."""
        config = self.config
        request = DataRequest(
            config.seq_len, config.num_samples, config.search_samples, config.eval_samples, config.seed
        )
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and config.seq_len > limit:
            raise FFPError(f"seq_len {config.seq_len} is more than the {limit} positions that the model knows")
        with self.meter.stage("data"):
            return load_windows(config.dataset, config.eval_dataset, self.tokenizer, self.model, request)

    @cached_property
    def dense_perplexity(self) -> float:
        """Perplexity of the dense model on the test windows."""
        with self.meter.stage("evaluation"), self.prepared.nested.applied(PruningPolicy.dense(self.units)) as model:
            return self._perplexity(model, "dense")

    @cached_property
    def prepared(self) -> Prepared:
        """Statistics, sorted model, ridge factors and loss curves."""
        windows = self.data.calibration.tokens
        return prepare(self.model, self.model_units, self.family, self.config, windows, self.meter)

    def _search(
        self, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None
    ) -> tuple[SearchResult, CandidateEvaluator]:
        evaluator = CandidateEvaluator(
            self.prepared.nested,
            self.data.search.tokens,
            config.reward == "calibrated",
            config.batch_size,
            autocast_dtype(self.model, config.search_dtype),
        )
        curves, mapping = self.prepared.curves, self._mapping(config)
        # The curriculum begins with less than the bounds may allow.
        least = self.budget(config.sparsity).least_sparsity
        steps = 1 if config.method in NO_SEARCH else config.search_steps
        with progress_bar(steps, f"Search {config.sparsity:.0%}", "candidate") as bar:

            def show(count: int, best: float) -> None:
                bar.set_postfix_str(f"best perplexity {best:.2f}", refresh=False)
                bar.update(count)

            task = SearchTask(
                actions=len(self.units),
                map_scores=lambda scores, sparsity: mapping(scores, self.budget(max(sparsity, least))),
                evaluate=evaluator,
                sparsity=config.sparsity,
                steps=steps,
                max_samples=len(self.data.search),
                predict=curves.predict if curves else None,
                on_evaluated=show,
            )
            return search(task, config, warm_start), evaluator

    def _mapping(self, config: FFPConfig) -> Callable[[np.ndarray, Budget], PruningPolicy]:
        return uniform if config.method == "uniform" else self.prepared.curves or MAPPINGS[config.mapping]

    def _baselines(self, config: FFPConfig, evaluator: CandidateEvaluator) -> dict[str, float]:
        """Perplexity on all search windows of what costs no search."""
        scores, budget = np.zeros(len(self.units)), self.budget(config.sparsity)
        policies = [mapping(scores, budget) for mapping in (uniform, self._mapping(config))]
        losses = evaluator(policies, np.arange(len(self.data.search))).mean(1)
        return {name: to_perplexity(float(loss)) for name, loss in zip(("uniform", "prior"), losses)}

    def _calibrate(
        self, config: FFPConfig, policy: PruningPolicy
    ) -> tuple[dict[int, torch.Tensor] | None, dict[str, Any]]:
        """Weights of output projections by unit index, and what is known of how well they fit."""
        nested = self.prepared.nested
        if config.calibration == "none":
            return None, {}
        if config.calibration == "ridge":
            return nested.compensated(policy), {}
        held_out = self.data.search.first(config.held_out_samples)
        fits = calibrate_sequentially(
            nested,
            policy,
            self.data.calibration.tokens,
            held_out.tokens,
            config.dense_target,
            config.sequential_lambda,
            autocast_dtype(self.model, config.search_dtype),
        )
        rows = [
            {"layer": unit.layer, "unit": unit.kind, "ridge_lambda": fit.ridge_lambda, "error": fit.held_out_error}
            for unit, fit in ((self.units[index], fit) for index, fit in sorted(fits.items()))
        ]
        return {index: fit.weight for index, fit in fits.items()}, {"units": rows} | held_out.describe()

    def _describe_search(
        self, config: FFPConfig, found: SearchResult, evaluator: CandidateEvaluator
    ) -> dict[str, Any]:
        dense = float(np.exp(evaluator.dense_losses.mean()))
        return {
            "method": config.method,
            "seed": config.seed,
            "candidate_evaluations": evaluator.evaluations,
            "tokens_evaluated": evaluator.tokens,
            "non_finite": evaluator.non_finite,
            "perplexity": {"dense": dense, "best": found.perplexity} | self.data.search.describe(),
        }

    def _perplexity(self, model: PreTrainedModel, name: str) -> float:
        windows = self.data.test.tokens
        with progress_bar(len(windows), f"Perplexity, {name}", "window") as bar:
            figures = Perplexity().compute(
                predictions=windows.tolist(), model=model, batch_size=self.config.batch_size, on_batch=bar.update
            )
        return figures["perplexity"]

    def save_pretrained(self, directory: str | os.PathLike, overwrite: bool = False) -> None:
        """Writes the last result as a checkpoint: weights, code, tokenizer, policy, agent, log, card and plots.

        Args:
            directory: The folder to write. It appears whole or not at all.
            overwrite: Whether to replace a folder that exists.

        Raises:
            FFPError: If nothing is pruned yet, or the folder exists.
        """
        save_checkpoint(self._finished(), directory, overwrite)

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
