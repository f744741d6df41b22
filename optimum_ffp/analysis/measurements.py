"""Measurements of a dense model that all policies share."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..allocation.policy import PruningPolicy, Unit
from ..compression.sorted_model import SortedModel
from ..config.texts import TextMix
from ..data import (
    DataRequest,
    DataSplits,
    calibration_text,
    check_calibration_tokens,
    load_windows,
    window_length,
)
from ..data.cutting import check_known
from ..data.samples import write_samples
from ..data.self_generated import lacks_chats
from ..engine import LayerwiseModel
from ..engine.layerwise_model import unchanged
from ..errors import FFPError
from ..evaluation import to_perplexity, window_losses
from ..evaluation.block_costs import measure_costs
from ..modeling.auto import mark_untied
from ..modeling.families import ModelUnit, find_family
from ..modeling.limits import kept_tokens
from ..plan import Plan
from ..utils import processes
from ..utils.lm_head import embedding_of
from ..utils.precision import autocast_dtype, compute_dtype, dtype_name, in_compute_dtype
from ..utils.profiling import StageMeter
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from ..vocabulary.tokenizer import trim_tokenizer
from ..vocabulary.tokens import choose_tokens, count_tokens
from ..vocabulary.trimmed import TrimmedVocabulary
from .attention import find_unit_variants
from .experts import counted_tokens
from .prepare import Preparation, Prepared


logger = logging.getLogger(__name__)


def policy_losses(
    sorted_model: SortedModel,
    policies: Sequence[PruningPolicy] | None,
    windows: torch.Tensor,
    weights: Mapping[str, torch.Tensor] | None = None,
    compensated: bool = False,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    description: str | None = None,
) -> np.ndarray:
    """Return the losses of policies, in nats per token, shape `[policies, windows]`.

    Args:
        sorted_model: The model with its groups sorted.
        policies: The policies; `None` for the original dense model.
        windows: Token ids, shape `[windows, window length]`. Processes share them.
        weights: Tensors that replace parameters of the dense model, by name.
        compensated: Whether to use the output weights after ridge regression.
        batch_size: Windows per forward pass.
        dtype: Autocast dtype; `None` for the model's own.
        description: Description of the progress bar; no bar if `None`.
    """
    share, layerwise = windows[processes.share(len(windows))], sorted_model.layerwise
    if policies is None:
        layerwise, changes = layerwise.dense, [unchanged]
    else:
        changes = [sorted_model.change(policy, weights, compensated) for policy in policies]
    losses = torch.empty(len(changes), 0, dtype=torch.float64)
    if len(share):
        layers = len(layerwise.layers) * math.ceil(len(share) / layerwise.chunk_size(share, len(changes)))
        with progress_bar(layers, description, "layer") as bar:
            losses = layerwise.losses(share, changes, dtype=dtype, batch_size=batch_size, on_layer=bar.update)
    return processes.gather(losses.T).T.numpy()


class Evaluation(NamedTuple):
    """Evaluation on the test windows.

    Attributes:
        losses: Losses of the windows of each text, in nats per token.
        routed: Tokens of the experts of every layer of a mixture, in descending order, with zeros for removed experts.
    """

    losses: list[list[float]]
    routed: list[list[int]]


class Measurements:
    """Data, sorted model and losses of one dense model, each computed on first access.

    They depend only on the model and options of stage `measured`, so that searches and calibrations with other options
    share them.

    Args:
        model: The dense model. Its heads and channels are reordered on first access of `prepared`.
        tokenizer: The tokenizer of the model.
        plan: Options of the measurements.
        data: Windows to use instead of those of the plan's datasets.
        device: Device to move the weights of one layer at a time to; `None` if all stay on their device.
        token: Access token of the Hub, for the datasets.
        dense: The original dense model, if `model` was pruned before.
        trimmed_tokenizer: The tokenizer of the model that was pruned before; `tokenizer` is that of the dense one.

    Attributes:
        plan: The plan.
        given_data: Digest of the windows passed instead of datasets; `None` without.
        unit_variants: Units of the model by kind of attention group, as `find_unit_variants` returns them.
        meter: Time, peak memory and tokens per stage.
        journal: Saves the measurements; by default nowhere.

    Raises:
        FFPError: If the model's family is not supported, the windows exceed its number of positions, or given ones
            have tokens outside its vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: Plan,
        data: DataSplits | None = None,
        device: torch.device | None = None,
        token: str | None = None,
        dense: PreTrainedModel | None = None,
        trimmed_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        mark_untied(model)
        self.model, self.tokenizer, self._token = model, tokenizer, token
        digest = hashlib.sha256()
        for _, windows in data.roles() if data else ():
            # Its name is published.
            TextMix.parse(windows.dataset)
            window_length(windows.length, model.config)
            tokens = windows.tokens.cpu().numpy()
            check_known(tokens.flatten(), tokenizer, model, windows.dataset)
            digest.update(str((windows.start_token, tokens.shape)).encode() + tokens.tobytes())
        self._given_data = data and data.with_bytes(tokenizer)
        self.given_data = digest.hexdigest() if data else None
        compute = None if hasattr(model, "hf_device_map") else compute_dtype(device or model.device, model.dtype)
        self.layerwise = LayerwiseModel(model, find_family(model.config), device, compute)
        if dense is not None:
            self.layerwise.original = LayerwiseModel(dense, self.layerwise.family, device, compute)
            self.layerwise.dense.counter = self.layerwise.counter
        self.unit_variants = find_unit_variants(model, self.layerwise.family, plan, plan.attention)
        self.plan, self._trimmed_tokenizer = plan, trimmed_tokenizer or tokenizer
        self._trimmed: dict[
            tuple[int | str | None, ...], tuple[PreTrainedTokenizerBase, TrimmedVocabulary | None]
        ] = {}
        self.meter = StageMeter(counter=self.layerwise.counter)
        self.journal = Journal()

    @property
    def compute_dtypes(self) -> list[str]:
        """Dtype that layers compute in and dtype of autocast; both depend on the hardware too."""
        dtype, autocast = self.layerwise.dtype, autocast_dtype(self.model, self.plan.search_dtype)
        return [dtype_name(dtype), dtype_name(autocast or dtype)]

    @property
    def model_units(self) -> Sequence[ModelUnit]:
        """Units of the model, with their projections. Those of a single variant need no measurements."""
        return self.unit_variants[0] if len(self.unit_variants) == 1 else self.prepared.sorted_model.model_units

    @property
    def units(self) -> tuple[Unit, ...]:
        """Units of the model."""
        return tuple(unit.unit for unit in self.model_units)

    def check(self, plan: Plan) -> None:
        """Raise `FFPError` if a plan requires new measurements, with every option whose value does."""
        before, now = self.plan.for_stages("measured"), plan.for_stages("measured")
        changed = [f"{name} ({before.get(name)!r} -> {now[name]!r})" for name in now if before.get(name) != now[name]]
        if plan.needs_factors and not self.plan.needs_factors:
            changed.append("reward or calibration (no ridge regression -> ridge regression)")
        if changed:
            raise FFPError(f"{', '.join(changed)} can't change after measuring; create a new FFPPruner")

    @cached_property
    def data(self) -> DataSplits:
        """Calibration, search, held-out and test windows."""
        request = DataRequest.of_prune(self.plan, self._token)
        with self.meter.stage("data"):
            load = partial(processes.on_main, lambda: (self._given_data or self._load(request)).to_list())
            data = DataSplits.from_list(self.journal.value("data", load))
        if self._given_data is None:
            self.meter.tokens["data"] += request.generated * request.length * processes.is_main()
        widest = max(unit.width for unit in self.unit_variants[0])
        check_calibration_tokens(data.calibration.tokens.numel(), widest)
        if lacks_chats(data.calibration.tokens, self.model, self.tokenizer):
            logger.warning(
                "the model has a chat template, but %s contains no chats; add conversations to the dataset, or the "
                "pruned model may not follow instructions",
                data.calibration.dataset,
            )
        return data

    def _load(self, request: DataRequest) -> DataSplits:
        dense = self.layerwise.dense
        if request.generated and dense.weights.offloaded:
            raise FFPError(
                "generating text (dataset self) needs all weights on the device; choose offload 'none', or a dataset "
                "without 'self'"
            )
        with dense.loaded() if request.generated else nullcontext():
            return load_windows(self.tokenizer, dense.model, request)

    @cached_property
    def block_costs(self) -> dict[str, Any]:
        """Seconds of attention and FFN by size, as returned by `measure_costs`.

        Raises:
            FFPError: If weights are offloaded, or the model hasn't enough positions for the workload.
        """
        if self.layerwise.weights.offloaded:
            raise FFPError("speed is measured with all weights on the device; choose offload none, or pass costs")
        measure = partial(measure_costs, self.model, self.plan.workload)
        with self.meter.stage("speed"):
            return self.journal.value("speed", partial(processes.on_main, measure))

    @cached_property
    def prepared(self) -> Prepared:
        """The sorted model, its ridge factors and loss curves."""
        windows = self.data.calibration
        return Preparation(self.layerwise, self.unit_variants, self.plan, windows, self.meter, self.journal).run()

    @cached_property
    def dense_losses(self) -> np.ndarray:
        """Losses of the dense model on the search windows, in nats per token, shape `[windows]`, as of candidates.

        Raises:
            FFPError: If the perplexity is not finite.
        """
        plan, windows, sorted_model = self.plan, self.data.search.tokens, self.prepared.sorted_model

        def measure() -> list[float]:
            losses = policy_losses(
                sorted_model,
                None,
                windows,
                batch_size=plan.batch_size,
                dtype=autocast_dtype(self.model, plan.search_dtype),
                description="Dense model on the search windows",
            )
            return losses[0].tolist()

        with self.meter.stage("search"):
            losses = np.array(self.journal.value("search-dense", measure))
        if not math.isfinite(to_perplexity(float(losses.mean()))):
            raise FFPError(
                "the perplexity of the dense model is not finite on the search windows; try search_dtype model, a "
                "wider dtype, or another dataset, or download the model again"
            )
        return losses

    @cached_property
    def dense_test_losses(self) -> Evaluation:
        """`test_losses` of the dense model."""
        return self.test_losses(None, "dense", self.journal, self.plan.batch_size)

    @cached_property
    def dense_samples(self) -> dict[str, str]:
        """Texts of the dense model by prompt."""
        dense = self.layerwise.dense
        with self.meter.stage("evaluation"), dense.loaded():
            return processes.on_main(partial(write_samples, dense.model, self.tokenizer))

    def test_losses(
        self,
        policy: PruningPolicy | None,
        name: str,
        journal: Journal,
        batch_size: int,
        weights: Mapping[str, torch.Tensor] | None = None,
        meter: StageMeter | None = None,
        model: PreTrainedModel | None = None,
        vocabulary: TrimmedVocabulary | None = None,
    ) -> Evaluation:
        """Evaluate a policy by `policy_losses` on the test windows of each text, or the dense model for `None`.

        With a trimmed vocabulary, the sliced `model` is evaluated. The journal saves the losses under the name. The
        time is added to `meter`, or else to that of the measurements.
        """
        sorted_model, policies = self.prepared.sorted_model, None if policy is None else [policy]
        experts = [unit for unit in self.model_units if unit.unit.kind == "experts"]

        def measure() -> Evaluation:
            run = partial(policy_losses, sorted_model, policies, weights=weights, batch_size=batch_size)
            tests = [test.tokens for test in self.data.tests]
            if model is not None:
                return Evaluation([self._trimmed_losses(model, tokens, vocabulary) for tokens in tests], [])
            with counted_tokens(experts) as counts:
                losses = [run(windows=tokens, description=f"Perplexity, {name}")[0].tolist() for tokens in tests]
            return Evaluation(losses, [processes.sum_(one).sort(descending=True).values.tolist() for one in counts])

        with (meter or self.meter).stage("evaluation"):
            return Evaluation(*journal.value(f"evaluation-{name}", measure))

    @cached_property
    def predicted_tokens(self) -> torch.Tensor:
        """How often the dense model expects each token in the calibration windows, float32, shape `[tokens]`.

        This is the sum of the probabilities that it predicts at all positions. Unlike counts, it tells tokens that a
        text lacks apart.
        """
        dense, windows = self.layerwise.dense, self.data.calibration.tokens

        def measure() -> dict[str, torch.Tensor]:
            predicted = torch.zeros(len(embedding_of(dense.model).weight), device=dense.device)

            def add(logits: torch.Tensor) -> None:
                predicted.add_(logits.float().softmax(-1).sum((0, 1)))
                bar.update(len(logits) * logits.shape[1])

            share = windows[processes.share(len(windows))]
            with progress_bar(share.numel(), "Predicted tokens", "token") as bar:
                if len(share):
                    dense.losses(
                        share,
                        dtype=autocast_dtype(self.model, self.plan.search_dtype),
                        batch_size=self.plan.batch_size,
                        on_decoded=lambda _: add,
                    )
            return {"predicted": processes.sum_(predicted).cpu()}

        return self.journal.tensors("predicted-tokens", measure)["predicted"]

    def trimmed(self, plan: Plan) -> tuple[PreTrainedTokenizerBase, TrimmedVocabulary | None]:
        """Return the tokenizer of a plan's pruned model, and its vocabulary unless that is the dense model's.

        Raises:
            FFPError: If the tokenizer can't be trimmed, or a text to count tokens in can't be read.
        """
        tokenizer, size = self._trimmed_tokenizer, plan.vocabulary
        key = size, plan.vocabulary_dataset
        if key in self._trimmed:
            return self._trimmed[key]

        def count() -> dict[str, torch.Tensor]:
            request = DataRequest.of_prune(plan, self._token)
            if plan.vocabulary_dataset is not None:
                request = replace(request, texts=TextMix.parse(plan.vocabulary_dataset))
            counts = count_tokens(tokenizer, calibration_text(self.tokenizer, self.layerwise.model, request))
            if plan.vocabulary_dataset is None:
                windows = self.tokenizer.batch_decode(self.data.calibration.tokens, skip_special_tokens=True)
                seen = count_tokens(tokenizer, windows)
                if counts.sum() >= 2 * seen.sum():
                    # Training learns to spell dropped tokens, and text whose tokens are all kept has none.
                    counts = (counts - seen).clamp_min(0)
            return {"counts": counts}

        rows = len(embedding_of(self.model).weight)
        with self.meter.stage("vocabulary"):
            if size is not None:
                _, earlier = self.trimmed(replace(plan, vocabulary=None, alternatives=()))
                journal = self.journal.part(plan.dataset, plan.vocabulary_dataset)
                counted = journal.tensors("vocabulary", partial(processes.tensors_on_main, count))["counts"].float()
                predicted = self.predicted_tokens if earlier is None else self.predicted_tokens[earlier.kept]
                # Tokens may have been added to the tokenizer without resizing the model.
                known = min(len(counted), len(predicted))
                counted[:known] += predicted[:known]
                tokenizer = trim_tokenizer(tokenizer, choose_tokens(tokenizer, counted, size))
            left = kept_tokens(self.model.config, size)
            self._trimmed[key] = tokenizer, TrimmedVocabulary.between(self.tokenizer, tokenizer, rows, left)
            return self._trimmed[key]

    def _trimmed_losses(
        self, model: PreTrainedModel, windows: torch.Tensor, vocabulary: TrimmedVocabulary | None
    ) -> list[float]:
        share = windows[processes.share(len(windows))]
        with in_compute_dtype(model), progress_bar(len(share), "Perplexity, calibrated", "window") as bar:
            losses = window_losses(model, share, on_batch=bar.update, vocabulary=vocabulary)
        return processes.gather(losses).tolist()

    def describe_experts(self, policy: PruningPolicy, pruned: Evaluation) -> dict[str, Any]:
        """Return the `experts` of a `PruningResult`, with the evaluation of the pruned model."""
        if not pruned.routed:
            return {}
        rows = zip(policy.units, self.dense_test_losses.routed, pruned.routed, policy.sizes)
        routing = [{"layer": unit.layer, "before": dense, "after": after[:size]} for unit, dense, after, size in rows]
        return {"rare": self.prepared.rare_experts, "features": self.model_units[0].width, "routing": routing}
