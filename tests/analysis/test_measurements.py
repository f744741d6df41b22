import pytest
import torch

from optimum_ffp import FFPError
from optimum_ffp.analysis.measurements import Measurements
from optimum_ffp.data import DataSplits, Windows
from tests.helpers import SETTINGS, make_tiny_model, make_tokenizer, plan_of, reference_losses, with_start_token


@pytest.fixture
def measure(data_folder):
    def call(tokenizer=None, **options):
        plan = plan_of(**{"dataset": str(data_folder)} | SETTINGS | options)
        return Measurements(make_tiny_model(), tokenizer or make_tokenizer(), plan)

    return call


def make_windows(length: int, largest: int = 128) -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    windows = [
        Windows(torch.randint(3, largest, (count, length), generator=generator), "mine", "given")
        for count in (8, 4, 3, 2)
    ]
    return DataSplits(*windows[:3], (windows[3],))


def test_given_windows_are_used_unchanged(caplog):
    """Their length counts, not that of windows of a text, and there are as many as there should be."""
    plan = plan_of(data=make_windows(24), train_seq_len=8)
    measured = Measurements(make_tiny_model(), make_tokenizer(), plan, make_windows(24))
    assert plan.seq_len == 24 and plan.options["calibration"].parts(24) == 3
    assert measured.data.calibration.tokens.shape == (8, 24) and not caplog.records
    measured.check(plan_of(data=make_windows(24)))
    # A word of text is its number, and the space and letter before it.
    predicted = make_windows(24).test.tokens[:, 1:].flatten().tolist()
    assert measured.data.test.bytes == sum(len(f" w{index}") for index in predicted)


def test_given_windows_beyond_context_or_vocabulary_are_rejected():
    with pytest.raises(FFPError, match="65"):
        Measurements(make_tiny_model(), make_tokenizer(), plan_of(data=make_windows(65)), make_windows(65))
    with pytest.raises(FFPError, match="embedding"):
        Measurements(make_tiny_model(), make_tokenizer(), plan_of(data=make_windows(24)), make_windows(24, 999))


def test_dense_losses_are_unchanged_by_sorting_groups(measure):
    measured = measure()
    search, test = (
        reference_losses(make_tiny_model(), part.tokens) for part in (measured.data.search, measured.data.test)
    )
    assert measured.dense_losses == pytest.approx(search.numpy(), rel=1e-5)
    assert measured.dense_test_losses.losses == [pytest.approx(test.tolist(), rel=1e-5)]
    # Sorting was not for nothing.
    weights = make_tiny_model().state_dict()
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in measured.model.state_dict().items())


def test_windows_have_start_token_if_tokenizer_adds_one(measure):
    adds = with_start_token(make_tokenizer())

    def begins(*tokenizer, **options) -> bool:
        return measure(*tokenizer, **options).data.calibration.start_token

    assert begins(adds) and begins(adds, dataset="self")
    # What the model writes begins with one even then, which other text does not have.
    assert not begins(adds, start_token="never") and not begins(dataset="self")


def test_plans_differing_only_in_search_options_share_measurements(measure, data_folder):
    measured = measure()
    later = {"search_steps": 3, "sparsity": 0.4, "calibration": "ridge", "method": "random", "seq_len": 24}
    measured.check(plan_of(dataset=str(data_folder), **SETTINGS | later))
    other = plan_of(dataset="self", **SETTINGS | {"num_samples": 3})
    with pytest.raises(FFPError, match=r"^dataset [^,]*, num_samples \(8 -> 3\) can"):
        measured.check(other)
