"""Comparison of models, printed by `optimum-cli ffp evaluate`."""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..config import EvaluationConfig
from ..data import DataRequest, Windows, load_windows, window_length
from ..errors import FFPError
from ..hub.record import prune_record
from ..modeling.loading import LoadOptions, load_any, load_tokenizer, read_any_config
from ..utils.batch_size import memory_errors, with_halving_batches
from ..utils.folders import expand
from ..utils.lm_head import embedding_of
from ..utils.precision import dtype_name, in_compute_dtype
from ..utils.record import Record
from ..vocabulary.trimmed import TrimmedVocabulary
from .divergence import Predictions
from .latency import measure_speed
from .record import compare_records, perplexity_record, size_record
from .table import comparison_table
from .tasks import TaskSuite


REMEDIES = "speed=False (--no-speed), a smaller seq_len, dtype bfloat16, or another device"
Source = str | os.PathLike | PreTrainedModel


class Evaluation(dict[str, dict[str, Any]]):
    """Figures of `"model"`, `"baseline"`, `"baseline 2"`, ..., ready for JSON. Printed, they are a table."""

    def __str__(self) -> str:
        return comparison_table(self)


@memory_errors(REMEDIES, stage="the evaluation")
def evaluate(
    model: Source,
    baseline: Source | Sequence[Source] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Evaluation:
    """Measure perplexity, tasks, size and speed of a model and a baseline, and the divergence from the baseline.

    Perplexity is measured on the test split, or on the part of a text without splits that a prune reports on. All
    models are measured on the same windows, by default with the length recorded for the first pruned model. One with a
    trimmed vocabulary is measured on the windows of the dense model, and has no divergence from it.

    Args:
        model: Hub id, `id@revision`, folder or `.gguf` file of a causal LM, dense or pruned, or a model in memory,
            such as `result.model` of a prune.
        baseline: Model to compare with, such as the dense one, or several; the divergence is measured from the first.
        tokenizer: Tokenizer of models passed in memory; by default that of their `name_or_path`.
        options: Options of `EvaluationConfig`, such as `dataset` and `tasks`, and fields of `LoadOptions`, such as
            `device` and `dtype`. The revision only applies to `model`.

    Returns:
        The figures by model.

    Raises:
        FFPError: If a model, text or task can't be read, an option is not allowed, or memory is exhausted.
    """
    loading = {field.name: options.pop(field.name) for field in fields(LoadOptions) if field.name in options}
    config = EvaluationConfig(**options)
    load_options = LoadOptions(**loading)
    candidates = {"model": _Candidate.of(model, tokenizer, load_options)}
    baselines = [baseline] if isinstance(baseline, Source) else baseline or []
    for number, source in enumerate(baselines, 1):
        role = "baseline" if number == 1 else f"baseline {number}"
        candidates[role] = _Candidate.of(source, tokenizer, replace(load_options, revision=None))
    # Fail on unreadable inputs before anything is measured.
    suite = None
    if config.tasks or config.tasks_path:
        suite = TaskSuite(config.tasks, config.tasks_path, config.num_fewshot, config.confirm_run_unsafe_code)
    request = _request_texts(config, candidates.values())

    figures = Evaluation({role: {"name": candidate.name} for role, candidate in candidates.items()})
    if config.speed:
        loaded = {role: candidate.load()[0] for role, candidate in candidates.items()}
        for role, speed in measure_speed(loaded, config.prompt_tokens, config.new_tokens, config.batch_size).items():
            figures[role]["speed"] = speed
        del loaded
    measurement = _Measurement(config, request, suite)
    # Others are read in the tokens of the largest vocabulary, and compared with the predictions of the baseline.
    sizes = {role: candidate.config.get_text_config().vocab_size for role, candidate in candidates.items()}
    for role in sorted(figures, key=lambda role: (-sizes[role], role != "baseline")):
        # Popped, so that the model is freed before the next one is loaded.
        figures[role] |= measurement.measure(candidates.pop(role), role)
    compare_records(figures, measurement.tests)
    return figures


@dataclass
class _Candidate:
    """A model to measure; `source` is its Hub id or path, empty for a model that was given, in `loaded`."""

    name: str
    source: str
    options: LoadOptions
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @classmethod
    def of(cls, source: Source, tokenizer: PreTrainedTokenizerBase | None, options: LoadOptions) -> "_Candidate":
        if isinstance(source, PreTrainedModel):
            if tokenizer is None and not source.name_or_path:
                raise FFPError("a model that wasn't loaded from a folder or the Hub needs tokenizer=...")
            name = source.name_or_path or type(source).__name__
            return cls(name, "", options, (source, tokenizer or load_tokenizer(name, options)))
        name = os.fspath(source)
        model_id, _, revision = (name, "", "") if expand(name).exists() else name.partition("@")
        return cls(name, model_id, replace(options, revision=revision) if revision else options)

    @cached_property
    def config(self) -> PretrainedConfig:
        return self.loaded[0].config if self.loaded else read_any_config(self.source, self.options)

    @cached_property
    def prune_record(self) -> Record | None:
        return prune_record(self.source, **self.options.hub()) if self.source else None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        self.loaded = self.loaded or load_any(self.source, self.options)
        self.loaded[0].eval()
        return self.loaded


def _request_texts(config: EvaluationConfig, candidates: Collection[_Candidate]) -> DataRequest:
    """Return the request for the windows of all models, with what the first pruned one has recorded."""
    configs = [candidate.config for candidate in candidates]
    first = next((candidate.prune_record for candidate in candidates if candidate.prune_record), None)
    return DataRequest(
        texts=config.texts,
        reported=config.texts,
        length=min(window_length(config.seq_len or (first and first.window_length), each) for each in configs),
        test=config.eval_samples,
        seed=0,
        text_column=config.text_column,
        start_token=first.start_token if first else "auto",
        token=next(iter(candidates)).options.token,
    )


@dataclass
class _Measurement:
    """Measures models one after another, that with the most tokens first.

    Attributes:
        tests: Test windows of every text, by model.
        first: Tokenizer of the first model, and number of tokens that it has embeddings for.
        predictions: Those of the baseline for every text.
    """

    config: EvaluationConfig
    request: DataRequest
    suite: TaskSuite | None
    tests: dict[str, tuple[Windows, ...]] = field(default_factory=dict)
    first: tuple[PreTrainedTokenizerBase, int] | None = None
    predictions: list[Predictions] = field(default_factory=list)

    def measure(self, candidate: _Candidate, role: str) -> dict[str, Any]:
        """Return the size, perplexities and task scores of a model."""
        model, tokenizer = candidate.load()
        record = size_record(model, candidate.source, candidate.prune_record, **candidate.options.hub())
        vocabulary = self._load_tests(model, tokenizer, role) if self.request.texts.texts else None
        with in_compute_dtype(model):
            record["compute_dtype"] = dtype_name(model.dtype)
            if role in self.tests:
                record["perplexity"], *record["other_texts"] = self._perplexities(model, role, vocabulary)
            if self.suite:
                score = partial(self.suite.score, model, tokenizer, self.config.limit)
                record["tasks"] = with_halving_batches(score, self.config.batch_size)
        return record

    def _load_tests(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, role: str
    ) -> TrimmedVocabulary | None:
        """Set the windows of a model; return its vocabulary if they are in the tokens of the first one."""
        size, vocabulary = len(embedding_of(model).weight), None
        self.first = self.first or (tokenizer, size)
        dense, rows = self.first
        # A trimmed vocabulary keeps all special tokens.
        if size < rows and {*tokenizer.all_special_tokens} == {*dense.all_special_tokens}:
            with suppress(FFPError):
                vocabulary = TrimmedVocabulary.between(dense, tokenizer, rows, size)
        tests = next(iter(self.tests.values())) if vocabulary else load_windows(tokenizer, model, self.request).tests
        self.tests[role] = tests
        return vocabulary

    def _perplexities(
        self, model: PreTrainedModel, role: str, vocabulary: TrimmedVocabulary | None
    ) -> list[dict[str, Any]]:
        """Measure the perplexity on every text, adding predictions of the baseline, or comparing others with them."""
        records = []
        for number, text in enumerate(self.tests[role]):
            stored = baseline = None
            # A token of the dense model is several predictions of one with a trimmed vocabulary.
            if role == "baseline" and not vocabulary:
                stored = Predictions(model, text.tokens, self.predictions[0].head if self.predictions else None)
                self.predictions.append(stored)
            elif self.predictions and not vocabulary and self.predictions[number].comparable(model, text.tokens):
                baseline = self.predictions[number]
            measure = partial(
                perplexity_record,
                model,
                text,
                store=stored,
                baseline=baseline,
                label=f"Perplexity, {role}",
                vocabulary=vocabulary,
            )
            records.append(with_halving_batches(measure, self.config.batch_size))
        return records
