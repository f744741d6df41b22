import numpy as np
import pytest

from optimum_ffp.search.evaluator import CandidateEvaluator
from optimum_ffp.utils.resume import Journal
from tests.helpers import make_sorted_model, make_tiny_model, random_policy, reference_losses


@pytest.fixture
def sorted_model(windows):
    return make_sorted_model(make_tiny_model(), windows)[0]


@pytest.mark.parametrize("compensated", [False, True])
def test_candidate_losses_equal_losses_of_sliced_model(sorted_model, windows, compensated):
    policies = [random_policy(sorted_model, seed) for seed in (0, 1)]
    evaluate = CandidateEvaluator(sorted_model, np.zeros(6), windows, compensated)
    found = evaluate(policies, np.array([4, 1]))
    for policy, losses in zip(policies, found):
        outputs = sorted_model.compensated(policy) if compensated else None
        sliced = sorted_model.slice(policy, outputs)
        assert losses == pytest.approx(reference_losses(sliced, windows[[4, 1]]).numpy(), rel=1e-5)


def test_journaled_losses_are_not_measured_again(sorted_model, windows, tmp_path, monkeypatch):
    policy = random_policy(sorted_model, 0)
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    first = CandidateEvaluator(sorted_model, np.zeros(6), windows, journal=journal)([policy], np.arange(6))
    monkeypatch.setattr("optimum_ffp.search.evaluator.policy_losses", None)
    again = CandidateEvaluator(sorted_model, np.zeros(6), windows, journal=journal)
    assert again([policy], np.arange(6)).tolist() == first.tolist()
    compensated = CandidateEvaluator(sorted_model, np.zeros(6), windows, compensated=True, journal=journal)
    with pytest.raises(TypeError):
        compensated([policy], np.arange(6))


def test_journal_keeps_losses_of_different_windows_apart(sorted_model, windows, tmp_path):
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    policy, alone = random_policy(sorted_model, 0), CandidateEvaluator(sorted_model, np.zeros(6), windows)
    saving = CandidateEvaluator(sorted_model, np.zeros(6), windows, journal=journal)
    for chosen in ([0, 1], [4, 1], [0, 1, 2]):
        assert saving([policy], np.array(chosen)).tolist() == alone([policy], np.array(chosen)).tolist()
