"""Measurements of a dense model that all policies share."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..allocation.policy import PruningPolicy, Unit
from ..compression.sorted_model import SortedModel
from ..config import FFPConfig
from ..config.texts import TextMix
from ..data import (
    DataRequest,
    DataSplits,
    check_calibration_tokens,
    find_start_token,
    load_windows,
    window_length,
    with_window_length,
)
from ..data.cutting import check_known
from ..data.self_generated import NEEDS_WEIGHTS
from ..engine import LayerwiseModel
from ..errors import FFPError
from ..evaluation import to_perplexity
from ..modeling.auto import note_untied
from ..modeling.families import ModelUnit, find_family
from ..utils import processes
from ..utils.batch_size import with_halving_batches
from ..utils.precision import autocast_dtype, compute_dtype, dtype_name
from ..utils.profiling import StageMeter
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from .attention import find_ways
from .prepare import Prepared, prepare


logger = logging.getLogger(__name__)


def policy_losses(
    sorted_model: SortedModel,
    policies: Sequence[PruningPolicy],
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
        policies: Numbers of groups that each unit keeps.
        windows: Token ids, shape `[windows, window length]`. Processes share them.
        weights: Tensors that replace the dense model's own, by the parameter's name.
        compensated: Whether output weights are those after ridge regression.
        batch_size: Windows per forward pass, halved if memory runs out.
        dtype: Autocast dtype; `None` for the model's own.
        description: Of the progress bar, if there is one.
    """
    layerwise, own = sorted_model.layerwise, windows[processes.share(len(windows))]
    changes = [sorted_model.change(policy, weights, compensated) for policy in policies]

    def measure(size: int) -> torch.Tensor:
        layers = len(layerwise.layers) * math.ceil(len(own) / layerwise.at_once(own, len(policies)))
        with progress_bar(layers, description or "", "layer", description is not None) as bar:
            return layerwise.losses(own, changes, dtype, size, bar.update)

    none = torch.empty(len(policies), 0, dtype=torch.float64)
    losses = with_halving_batches(measure, batch_size) if len(own) else none
    return processes.gather(losses.T).T.numpy()


class Measurements:
    """Data, sorted model and losses of one dense model, each computed on first access.

    The measurements depend only on the model and options of stage `measured`, so that searches and calibrations with
    other options share them. `check` rejects a config that requires other measurements.

    Args:
        model: The dense model. Its heads and channels are reordered on first access of `prepared`.
        tokenizer: The tokenizer of the model.
        config: Options of the measurements. Later changes of this object have no effect.
        data: Windows to use instead of those of the config's datasets.
        device: Device to bring the weights of one layer at a time to; `None` if all are where they run.
        token: Access token of the Hub, for the datasets.

    Attributes:
        config: A copy of the config, with `seq_len` resolved to a number.
        ways: Units of the model by what attention may lose, as `find_ways` returns them. With one way they are known
            before anything is measured.
        meter: Time, peak memory and tokens per stage.
        journal: Saves the measurements. By default nothing is saved; may be replaced by a journal in a folder.

    Raises:
        FFPError: If the model's family is not supported, the windows exceed its number of positions, or given ones
            have tokens that it doesn't know.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: FFPConfig,
        data: DataSplits | None = None,
        device: torch.device | None = None,
        token: str | None = None,
    ):
        note_untied(model)
        self.model, self.tokenizer, self._given_data, self._token = model, tokenizer, data, token
        for _, windows in data.roles() if data else ():
            # Its name is published.
            TextMix.parse(windows.dataset)
            window_length(windows.length, model.config)
            check_known(windows.tokens.flatten().cpu().numpy(), tokenizer, model, windows.dataset)
        self.config = self.resolved(config)
        compute = None if hasattr(model, "hf_device_map") else compute_dtype(device or model.device, model.dtype)
        self.layerwise = LayerwiseModel(model, find_family(model.config), device, compute)
        self.ways = find_ways(model, self.layerwise.family, config)
        self.meter = StageMeter(counter=self.layerwise.counter)
        self.journal = Journal()

    @property
    def compute_dtypes(self) -> list[str]:
        """Dtypes of layers while they run, and of their products under autocast, which depend on the hardware too."""
        own = self.layerwise.dtype
        return [dtype_name(dtype or own) for dtype in (own, autocast_dtype(self.model, self.config.search_dtype))]

    @cached_property
    def given_data(self) -> str | None:
        """Digest of the windows that are used instead of datasets, `None` without."""
        if self._given_data is None:
            return None
        digest = hashlib.sha256()
        for _, windows in self._given_data.roles():
            description = str((windows.start_token, tuple(windows.tokens.shape)))
            digest.update(description.encode() + windows.tokens.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def start_token(self) -> bool:
        """Whether every text begins with a start token: the tokenizer adds one, and calibration windows have it."""
        added = find_start_token(self.tokenizer, self.config.start_token) is not None
        return added and self.data.calibration.start_token

    @property
    def model_units(self) -> Sequence[ModelUnit]:
        """Attention and FFN of every layer, with their projections."""
        return self.ways[0] if len(self.ways) == 1 else self.prepared.sorted_model.model_units

    @property
    def units(self) -> tuple[Unit, ...]:
        """Attention and FFN of every layer."""
        return tuple(unit.unit for unit in self.model_units)

    def resolved(self, config: FFPConfig) -> FFPConfig:
        """Return a copy of a config with `seq_len` set; with given windows it is that of those for calibration.

        Raises:
            FFPError: If it is larger than the model's number of positions.
        """
        if self._given_data is None:
            return with_window_length(config, self.model.config)
        return replace(config.resolve(), seq_len=self._given_data.calibration.length)

    def differences(self, config: FFPConfig) -> list[str]:
        """Return messages on the options whose values require other measurements; empty if there are none."""
        before, now = self.config.for_stages("measured"), self.resolved(config).for_stages("measured")
        found = [f"{name} was {before[name]!r} and is {now[name]!r}" for name in before if before[name] != now[name]]
        if config.needs_factors and not self.config.needs_factors:
            found.append("reward and calibration didn't need ridge regression and now do")
        return found

    def check(self, config: FFPConfig) -> None:
        """Raise `FFPError` if a config requires other measurements."""
        if found := self.differences(config):
            raise FFPError(f"{'; '.join(found)}: measurements are made once; make a new FFPPruner with this config")

    @cached_property
    def data(self) -> DataSplits:
        """Calibration, search and test windows."""
        request = DataRequest.of(self.config, self._token)
        with self.meter.stage("data"):
            load = partial(processes.on_main, lambda: self._load(request).to_list())
            data = DataSplits.from_list(self.journal.value("data", load))
        if self._given_data is None and processes.is_main():
            written = request.count_generated(self.config.texts, self.config.reported)
            self.meter.tokens["data"] += sum(written.values()) * request.length
        widest = max(unit.output.module.in_features for unit in self.ways[0])
        check_calibration_tokens(data.calibration.tokens.numel(), widest)
        if self._given_data is not None:
            # They are as many as they should be.
            request = replace(request, calibration=len(data.calibration), search=len(data.search), test=None)
        for warning in data.warnings(request):
            logger.warning(warning)
        return data

    def _load(self, request: DataRequest) -> DataSplits:
        config, layerwise = self.config, self.layerwise
        writes = self._given_data is None and (config.texts.includes_self or config.reported.includes_self)
        if writes and layerwise.weights.offloaded:
            raise FFPError(NEEDS_WEIGHTS)
        with layerwise.loaded() if writes else nullcontext():
            return self._given_data or load_windows(config.texts, self.tokenizer, self.model, request, config.reported)

    @cached_property
    def prepared(self) -> Prepared:
        """The sorted model, its ridge factors and loss curves."""
        windows = self.data.calibration.tokens
        return prepare(self.layerwise, self.ways, self.config, windows, self.meter, self.journal)

    @cached_property
    def dense_losses(self) -> np.ndarray:
        """Losses of the dense model on the search windows, in nats per token, shape `[windows]`.

        They are computed in the same dtype as those of candidates.

        Raises:
            FFPError: If the perplexity is not finite.
        """
        config, windows = self.config, self.data.search.tokens
        dtype, dense = autocast_dtype(self.model, config.search_dtype), PruningPolicy.dense(self.units)

        def measure() -> list[float]:
            found = policy_losses(
                self.prepared.sorted_model, [dense], windows, batch_size=config.batch_size, dtype=dtype
            )
            return found[0].tolist()

        _ = self.prepared
        with self.meter.stage("search"):
            losses = np.array(self.layerwise.counter.value(self.journal, "dense-losses", measure))
        if not math.isfinite(to_perplexity(float(losses.mean()))):
            raise FFPError(
                "the perplexity of the dense model is not finite on the search windows; try search_dtype model, a "
                "dtype of more bits, or another dataset, or download the model again"
            )
        return losses

    @cached_property
    def dense_test_losses(self) -> list[list[float]]:
        """Losses of the dense model on the test windows of each text, in nats per token."""
        _ = self.prepared
        dense = PruningPolicy.dense(self.units)
        return self.test_losses(dense, "dense", journal=self.journal, batch_size=self.config.batch_size)

    def test_losses(
        self,
        policy: PruningPolicy,
        name: str,
        journal: Journal,
        batch_size: int,
        weights: Mapping[str, torch.Tensor] | None = None,
        meter: StageMeter | None = None,
    ) -> list[list[float]]:
        """Return the losses of a policy on the test windows of each text, in nats per token.

        It is evaluated on views of the dense model, so that only one model is in memory.

        Args:
            policy: Number of groups that each unit keeps.
            name: Label of the progress bar and of the journal entry.
            journal: Saves the losses.
            batch_size: Windows per forward pass, halved if memory runs out.
            weights: Tensors that replace the dense model's own, by the parameter's name.
            meter: Measures the stage; the meter of the measurements if `None`.
        """

        def measure() -> list[list[float]]:
            return [
                policy_losses(
                    self.prepared.sorted_model,
                    [policy],
                    test.tokens,
                    weights=weights,
                    batch_size=batch_size,
                    description=f"Perplexity, {name}",
                )[0].tolist()
                for test in self.data.tests
            ]

        with (meter or self.meter).stage("evaluation"):
            return self.layerwise.counter.value(journal, f"test-losses-{name}", measure)
