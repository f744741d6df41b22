"""What goes through the layers in every stage of a prune: tokens, and the offloaded layers themselves."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..compression.distillation import distillation_tokens, tokens_per_window, windows_per_step
from ..compression.last_norm import prediction_tokens
from ..config import FFPConfig
from ..config.fields import GRADIENT_COST, NO_SEARCH
from ..data import TEST_WINDOWS, DataRequest, estimate_test_tokens, lacks_test_split, reported_texts
from ..search.task import divide_steps


class SearchCount(NamedTuple):
    """Candidate evaluations of one search: of updates, each of which may be a forward and a backward pass, of
    finalists, and of the policies without a search.
    """

    updates: int
    finalists: int
    baselines: int


def calibrating_processes(config: FFPConfig, processes: int) -> int:
    """Return how many processes share calibration: in distillation no more than a step has windows."""
    if config.calibration != "distillation":
        return processes
    length = config.seq_len // config.distillation_parts
    return min(processes, windows_per_step(config.distillation_batch, length))


def count_searches(config: FFPConfig, sparsities: int) -> Iterator[SearchCount]:
    """Yield the candidate evaluations of the search at every sparsity."""
    for one in config.sweep([config.sparsity] * sparsities):
        baselines = 2 * (sparsities > 1 or config.method not in NO_SEARCH)
        yield SearchCount(*divide_steps(one), baselines)


def count_tokens(config: FFPConfig, units: int, sparsities: int, head: float) -> dict[str, int | None]:
    """Return the number of tokens per stage in forward passes of the model, as in `PruningResult.cost`.

    Args:
        config: Options of the prune.
        units: Number of units of the model.
        sparsities: Number of sparsities.
        head: Share of the head in a forward pass (`head_share`).

    Returns:
        For the stage `evaluation` those of one model, by estimate without `eval_samples`; `None` if a test split of
        unknown length is used whole.
    """
    length, every = config.seq_len, config.search_samples
    tokens: dict[str, int | None] = {}
    written = DataRequest.of(config).written(config.dataset, config.eval_dataset)
    if any(written.values()):
        tokens["data"] = sum(written.values()) * length
    tokens["statistics"] = config.num_samples * length
    if config.needs_fishers:
        tokens["fisher"] = GRADIENT_COST * min(config.fisher_samples, config.num_samples) * length
    cost = GRADIENT_COST if config.follows_gradient else 1
    # The dense model is evaluated too, once.
    windows = every
    for search in count_searches(config, sparsities):
        windows += search.updates * cost * min(config.update_samples, every)
        windows += (search.finalists + search.baselines) * every
    tokens["search"] = windows * length
    tokens["calibration"] = sparsities * _calibration_tokens(config, head)
    tests = _test_windows(config)
    tokens["evaluation"] = None if None in tests else sum(tests) * length
    return tokens


def count_walks(
    config: FFPConfig, units: int, sparsities: int, processes: int, at_once: Callable[[int], int]
) -> dict[str, int | None]:
    """Return how often all layers are run through per stage: with offload, they are brought to the device as often.

    Args:
        config: Options of the prune.
        units: Number of units of the model.
        sparsities: Number of sparsities.
        processes: Number of processes, which share the windows.
        at_once: Number of windows that are taken through the layers together, by the number of hidden states that are
            kept of each.

    Returns:
        For the stage `evaluation` those of one model, by estimate without `eval_samples`; `None` if a test split of
        unknown length is used whole.
    """

    def walks(windows: int, copies: int = 1) -> int:
        return math.ceil(math.ceil(windows / processes) / at_once(copies))

    def backward(windows: int) -> int:
        return 2 * walks(windows, units // 2 + 2)

    found: dict[str, int | None] = {"statistics": 1}
    if config.needs_fishers:
        found["fisher"] = backward(min(config.fisher_samples, config.num_samples))
    every = config.search_samples
    found["search"] = walks(every)
    for search in count_searches(config, sparsities):
        read = min(config.update_samples, every)
        if config.follows_gradient:
            found["search"] += search.updates * backward(read)
        else:
            together = min(search.updates, config.candidates) or 1
            found["search"] += math.ceil(search.updates / together) * walks(read, together)
        found["search"] += sum(walks(every, policies) for policies in search[1:] if policies)
    found["calibration"] = sparsities * (config.calibration != "none")
    tests = _test_windows(config)
    found["evaluation"] = None if None in tests else sum(map(walks, tests))
    found["slicing"] = sparsities
    return found


def _test_windows(config: FFPConfig) -> list[int | None]:
    """Test windows of every text that is reported, by estimate without `eval_samples`; `None` if that isn't known."""

    def count(name: str) -> int | None:
        if config.eval_samples or lacks_test_split(name):
            return config.eval_samples or TEST_WINDOWS
        tokens = estimate_test_tokens(name)
        return tokens and max(1, tokens // config.seq_len)

    written = DataRequest.of(config).written(config.dataset, config.eval_dataset)
    reported = reported_texts(config.dataset, config.eval_dataset)
    return [written["test"] if name == "self" else count(name) for name in reported]


def last_norm_tokens(config: FFPConfig, head: float) -> int:
    """Return the tokens of the fit of the last norm at one sparsity, if it gains at the first attempt.

    Args:
        config: Options of the prune, with distillation.
        head: Share of the head in a forward pass (`head_share`).
    """
    parts, (windows, held_out) = config.distillation_parts, _calibration_windows(config)
    length, passes = config.seq_len // parts, config.distillation_passes
    return prediction_tokens(parts * windows, parts * held_out, length, passes, head)


def _calibration_windows(config: FFPConfig) -> tuple[int, int]:
    """Windows that calibration reads, and those that it holds out."""
    return config.num_samples, min(config.held_out_samples, config.search_samples)


def _calibration_tokens(config: FFPConfig, head: float) -> int:
    """Tokens of the calibration at one sparsity, if distillation gains everywhere at the first attempt."""
    windows, held_out = _calibration_windows(config)
    if config.calibration == "distillation":
        passes, parts = config.distillation_passes, config.distillation_parts
        # Fewer if windows begin with a start token, which is only known to the tokenizer.
        length = tokens_per_window(config.seq_len, parts=parts)
        return distillation_tokens(windows * length, held_out * length, passes) + last_norm_tokens(config, head)
    return 0
