"""Thompson sampling over the multipliers of the loss curves, for when a backward pass doesn't fit in memory."""

from collections.abc import Sequence

import numpy as np

from ...allocation.policy import Unit
from ...config import FFPConfig
from ...errors import FFPError
from ..curve_posterior import OWN_SPREAD, shared_covariance, to_scores
from ..task import AgentState, SearchResult, SearchTask


# Noise levels relative to the measured loss: independent per candidate, and shared by all candidates of an update,
# which are evaluated on the same windows. The pair with the highest evidence is chosen.
NOISE_LEVELS = [(own, shared) for own in np.geomspace(0.003, 0.3, 13) for shared in (0.0, 0.03, 0.1, 0.3)]


class MultiplierPosterior:
    """Bayesian linear regression of measured losses on the curves' predictions.

    The model is `loss - loss_dense = Σ θ_i C_i(k_i) + noise` with `θ ~ N(1, K)`: a unit whose curve is exact has
    `θ_i = 1`, and errors of units of one kind are correlated if they are close in depth. Every candidate at any
    sparsity adds one equation. Noise is correlated within an update, as its candidates share the same windows.

    Args:
        units: The units of the model.
    """

    def __init__(self, units: Sequence[Unit]):
        self.features = np.zeros((0, len(units)))
        self.losses = np.zeros(0)
        self.updates = np.zeros(0)
        self.mean = np.ones(len(units))
        self.covariance = shared_covariance(units) + OWN_SPREAD**2 * np.eye(len(units))
        self._prior = self.mean.copy(), self.covariance.copy()

    def observe(self, features: np.ndarray, losses: np.ndarray, updates: np.ndarray | None = None) -> None:
        """Add the equations of candidates and update the posterior.

        Args:
            features: Predicted loss of every unit, in nats, shape `[candidates, units]`.
            losses: Measured loss minus that of the dense model on the same windows, in nats, shape `[candidates]`.
            updates: Index of the update of each candidate, shape `[candidates]`; a new one for all if `None`.
        """
        if updates is None:
            updates = np.full(len(losses), self.updates.max(initial=-1) + 1)
        self.updates = np.concatenate([self.updates, updates])
        self.features = np.concatenate([self.features, features])
        self.losses = np.concatenate([self.losses, losses])
        if not len(self.losses):
            return
        mean, covariance = self._prior
        cross = covariance @ self.features.T
        signal = self.features @ cross
        surprise = self.losses - self.features @ mean
        noise = min(NOISE_LEVELS, key=lambda level: self._negative_evidence(level, signal, surprise))
        gain = np.linalg.solve(signal + self._noise_matrix(noise), cross.T).T
        self.mean = mean + gain @ surprise
        self.covariance = covariance - gain @ cross.T

    def _noise_matrix(self, level: tuple[float, float]) -> np.ndarray:
        own, shared = level
        together = (self.updates[:, None] == self.updates) * np.outer(self.losses, self.losses)
        return np.diag((own * self.losses) ** 2 + 1e-10) + shared**2 * together

    def _negative_evidence(self, level: tuple[float, float], signal: np.ndarray, surprise: np.ndarray) -> float:
        total = signal + self._noise_matrix(level)
        return float(np.linalg.slogdet(total)[1] + surprise @ np.linalg.solve(total, surprise))

    def sample(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draw scores (logarithms of multipliers) from the posterior, shape `[count, units]`."""
        values, vectors = np.linalg.eigh((self.covariance + self.covariance.T) / 2)
        noise = generator.standard_normal((count, len(self.mean)))
        return to_scores(self.mean + noise @ (vectors * np.sqrt(values.clip(0))).T)


def check_state(state: AgentState, units: Sequence[Unit], config: FFPConfig) -> None:
    """Raise `FFPError` if a search can't start from the state of an agent."""
    _read_posterior(state, len(units))


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Run Thompson sampling: draw multipliers from the posterior, evaluate their policies, update the posterior.

    This is a contextual linear bandit, the single-step problem with a linear model of the reward instead of a network:
    the context is the sparsity, the action is one multiplier per curve. Each update uses other search windows, always
    paired with the dense model. The evaluations reserved for finalists compare, on all search windows, the posterior
    mean and the policy half-way from the unmodified curves to it, and in a longer search also the best candidates.

    Args:
        task: The search task. Its actions are multipliers of `task.curves`.
        config: Number of candidates and of windows per update, and the random seed.
        warm_start: Equations of a search at other sparsities to start from.

    Raises:
        FFPError: If `warm_start` is not a posterior for this number of units.
    """
    generator = np.random.default_rng(config.seed)
    posterior = MultiplierPosterior(task.units)
    if warm_start is not None:
        posterior.observe(*_read_posterior(warm_start, task.actions))
    budget = task.steps - task.finalists
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    spent = offset = 0
    while spent < budget:
        scores = posterior.sample(min(config.candidates, budget - spent), generator)
        policies = [task.map_scores(row, task.sparsity) for row in scores]
        losses = task.excess_losses(policies, task.sparsity, task.windows(config.update_samples, offset))
        finite = np.isfinite(losses)
        features = np.array([task.curves.predict(policy) for policy in policies])
        posterior.observe(features[finite], losses[finite])
        seen += list(zip(features, scores))
        spent, offset = spent + len(scores), offset + config.update_samples

    learned = to_scores(posterior.mean)
    answers = [learned, learned / 2]
    answers += [scores for _, scores in sorted(seen, key=lambda entry: float(entry[0] @ posterior.mean))]
    equations = {name: getattr(posterior, name) for name in ("features", "losses", "updates")}
    return task.conclude(answers[: task.finalists], equations)


def _read_posterior(weights: AgentState, units: int) -> tuple[np.ndarray, ...]:
    features, losses, updates = (weights.get(name) for name in ("features", "losses", "updates"))
    shapes = [None if column is None else column.shape for column in (features, losses, updates)]
    count = len(losses) if losses is not None and losses.ndim == 1 else -1
    if shapes != [(count, units), (count,), (count,)]:
        raise FFPError(
            f"the warm-start agent is not a posterior over {units} units; warm-start from a checkpoint of the same "
            "model that was searched with the same agent"
        )
    return features, losses, updates
