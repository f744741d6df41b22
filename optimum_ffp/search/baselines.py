"""What the agent has to beat: no search, random search, evolution. All behind the same evaluator."""

from collections.abc import Mapping

import numpy as np

from ..config import FFPConfig
from .task import SearchResult, SearchTask


# Standard deviation of scores: of random candidates, and of what a mutation adds.
SPREAD, MUTATION_SPREAD = 0.5, 0.3
# Shares of a generation, as in Search for Efficient LLMs (Shen et al. 2024): of 500 parents and children 350 are
# mutations, 100 crossovers, and the best 300 stay; every score mutates with probability 0.2.
MUTATIONS, SURVIVORS, MUTATION_PROBABILITY = 7 / 9, 0.6, 0.2


def evaluate_once(task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None) -> SearchResult:
    """No search: the policy that equal scores are mapped to."""
    return task.conclude([np.zeros(task.actions)])


def search_at_random(task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None) -> SearchResult:
    """Candidates drawn around equal scores, the first of them equal scores themselves; the best ones are finalists."""
    generator = np.random.default_rng(config.seed)
    if task.steps <= task.finalists:
        return evaluate_once(task, config, warm_start)
    scores = SPREAD * generator.standard_normal((task.steps - task.finalists, task.actions))
    scores[0] = 0
    losses = _evaluate(task, config, scores)
    return task.conclude(scores[np.argsort(losses)][: task.finalists])


def search_by_evolution(
    task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None
) -> SearchResult:
    """Evolution with mutation and crossover, scaled from the reference's 500 candidates to what may be spent.

    It begins with the same population as the random search and then evolves it over up to ten generations.
    """
    generator = np.random.default_rng(config.seed)
    budget = task.steps - task.finalists
    if budget < 1:
        return evaluate_once(task, config, warm_start)
    generation = max(2, budget // 10)
    scores = SPREAD * generator.standard_normal((min(budget, generation), task.actions))
    scores[0] = 0
    losses, spent = _evaluate(task, config, scores), len(scores)
    while spent < budget:
        order = np.argsort(losses)[: max(2, round(SURVIVORS * len(losses)))]
        scores, losses = scores[order], losses[order]
        children = []
        for _ in range(min(generation, budget - spent)):
            first, second = generator.integers(len(scores), size=2)
            mask = generator.random(task.actions)
            if generator.random() < MUTATIONS:
                noise = MUTATION_SPREAD * generator.standard_normal(task.actions)
                children.append(scores[first] + noise * (mask < MUTATION_PROBABILITY))
            else:
                children.append(np.where(mask < 0.5, scores[first], scores[second]))
        scores = np.concatenate([scores, children])
        losses = np.concatenate([losses, _evaluate(task, config, np.array(children))])
        spent += len(children)
    return task.conclude(scores[np.argsort(losses)][: task.finalists])


def _evaluate(task: SearchTask, config: FFPConfig, scores: np.ndarray) -> np.ndarray:
    # The same windows for all: without a model of the reward, losses on different windows don't compare.
    windows = task.windows(config.update_samples)
    losses = []
    for start in range(0, len(scores), config.candidates):
        policies = [task.map_scores(row, task.sparsity) for row in scores[start : start + config.candidates]]
        losses.append(task.excess_losses(policies, task.sparsity, windows))
    return np.concatenate(losses)
