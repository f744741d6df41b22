"""The size of the vocabulary under a budget: how many tokens are removed, and how much of the layers instead."""

import logging
from collections.abc import Sequence

import numpy as np

from ..analysis.measurements import Measurements
from ..compression.calibration import CalibrationTask
from ..compression.calibrations import ridge
from ..evaluation import to_perplexity, window_losses
from ..plan import Plan
from ..utils.precision import in_compute_dtype
from .depth import WINDOWS
from .runner import PolicySearch


logger = logging.getLogger(__name__)


def choose_vocabulary(measured: Measurements, plans: Sequence[Plan]) -> Plan:
    """Return the plan whose pruned model has the lowest loss on search windows, in the tokens of the dense model.

    Each has the vocabulary of its plan and the policy without a search that the rest of the budget allows, after ridge
    regression.
    """
    windows = measured.data.search.tokens[:WINDOWS].to(measured.model.device)

    def measure() -> list[float]:
        losses = []
        for plan in plans:
            search = PolicySearch(measured, plan)
            policy = search.no_search(search.budget)
            _, vocabulary = measured.trimmed(plan)
            journal = measured.journal.part(policy.sizes)
            task = CalibrationTask(measured.prepared.sorted_model, policy, measured.data, plan, journal, vocabulary)
            model = task.slice(ridge.calibrate(task).weights)
            with in_compute_dtype(model):
                losses.append(float(window_losses(model, windows, vocabulary=vocabulary).mean()))
            measured.layerwise.counter.add(windows.numel())
        return losses

    sizes = [plan.vocabulary for plan in plans]
    losses = measured.journal.part(sizes, plans[0].budget_name).value("search-vocabulary", measure)
    for size, loss in zip(sizes, losses):
        logger.info(f"{size or measured.model.config.vocab_size:,} tokens: perplexity {to_perplexity(loss):.2f}")
    return plans[int(np.nanargmin(losses))]
