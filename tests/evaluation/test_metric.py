import math

import pytest

from optimum_ffp.evaluation import window_losses
from optimum_ffp.evaluation.metric import Perplexity
from tests.helpers import make_tiny_model


def test_metric_is_the_exponential_of_the_mean(windows):
    model, seen = make_tiny_model(), []
    figures = Perplexity().compute(predictions=windows.tolist(), model=model, batch_size=4, on_batch=seen.append)
    assert figures["perplexity"] == pytest.approx(math.exp(window_losses(model, windows).mean()))
    assert figures["losses"] == pytest.approx(window_losses(model, windows).tolist())
    assert (figures["windows"], figures["window_length"], seen) == (6, 24, [4, 2])
