"""A synthetic loss landscape, which stands in for the language model."""

import numpy as np

from optimum_ffp.allocation.budget import Budget
from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.allocation.mappings.water_filling import map_scores as water_filling
from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.analysis.size_gradients import SizeGradients
from optimum_ffp.config.prune import GRADIENT_COST
from optimum_ffp.search.task import SearchTask
from tests.helpers import plan_of, sparsity_budget


UNITS = tuple(Unit(layer, "channel", 200, 10) for layer in range(6))
REMOVED = np.linspace(1, 0, 201)
# What the curves say, and how wrong they are: the truth is `MULTIPLIERS` times as much.
CURVES = [0.3 * (1 + layer) * REMOVED**2 for layer in range(6)]
MULTIPLIERS = np.array([4.0, 0.3, 1.0, 2.0, 0.5, 1.0])
SEARCHES = [
    *(("ffp", agent) for agent in ("gradient", "ppo")),
    *((method, "gradient") for method in ("random", "evolutionary")),
]


class SyntheticLandscape:
    """The loss of a policy is known; some windows are harder to all policies than others."""

    units, curves, multipliers = UNITS, CURVES, MULTIPLIERS

    def __init__(self, broken: bool = False, interaction: float = 0.0):
        generator = np.random.default_rng(9)
        self.dense_losses = 3.0 + 0.3 * generator.standard_normal(8)
        self.difficulty = np.exp(0.2 * generator.standard_normal(8))
        self.calls: list[PruningPolicy] = []
        self.spent = 0
        self.read: list[tuple[PruningPolicy, int]] = []
        self.broken, self.interaction = broken, interaction

    def loss(self, policy: PruningPolicy) -> float:
        total = self.loss_without_interaction(policy)
        return total + self.interaction * total**2

    def loss_without_interaction(self, policy: PruningPolicy) -> float:
        return sum(t * curve[size] for t, curve, size in zip(self.multipliers, self.curves, policy.sizes))

    def least_loss(self, budget: Budget) -> float:
        """The loss of a policy that knows the multipliers."""
        truth = CurveMapping([t * curve for t, curve in zip(self.multipliers, self.curves)])
        return self.loss(truth(np.zeros(len(self.units)), budget))

    def __call__(self, policies, windows):
        self.calls += policies
        self.spent += len(policies)
        self.read += [(policy, window) for policy in policies for window in windows]
        losses = np.array([np.nan if self.broken else self.loss(policy) for policy in policies])
        return self.dense_losses[windows] + losses[:, None] * self.difficulty[windows]

    def size_gradients(self, policy, windows):
        """What a backward pass would tell: the derivative of the loss, less the second-order term of each step."""
        losses = self([policy], windows)[0]
        self.spent += GRADIENT_COST - 1
        rise = np.nan if self.broken else 1 + 2 * self.interaction * self.loss_without_interaction(policy)
        changes = []
        for neighbor in policy.neighbors():
            sizes = zip(MULTIPLIERS, CURVES, policy.sizes, neighbor.sizes)
            change = [t * rise * (c[there] - c[here]) - abs(c[there] - c[here]) for t, c, here, there in sizes]
            changes.append(np.array(change) * self.difficulty[windows, None])
        return SizeGradients(losses, *changes)


def run(method="ffp", agent="gradient", steps=64, seed=0, warm_start=None, sparsity=0.3, landscape=None, **options):
    landscape = landscape or SyntheticLandscape()
    mapping = CurveMapping(CURVES)
    used = water_filling if agent == "ppo" else mapping
    plan = plan_of(method=method, agent=agent, mapping="curves", search_steps=steps, seed=seed, **options)
    budget = sparsity_budget(UNITS, sparsity, 0.1)
    task = SearchTask(
        plan=plan,
        budget=budget,
        mapping=used,
        evaluate=landscape,
        curves=mapping,
        warm_start=warm_start,
        baselines={} if method == "no-search" else {"no-search": mapping(np.zeros(6), budget)},
    )
    return plan.function("method")(task), landscape, task


def regret(agent: str, interaction: float, method: str = "ffp") -> float:
    """What a search leaves of the loss that knowing the multipliers would save, as a share of it."""
    landscape = SyntheticLandscape(interaction=interaction)
    found, start = (landscape.loss(run(one, agent, landscape=landscape)[0].policy) for one in (method, "no-search"))
    least = landscape.least_loss(sparsity_budget(UNITS, 0.3, 0.1))
    return (found - least) / (start - least)
