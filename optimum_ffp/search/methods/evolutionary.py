"""Evolutionary search with mutation and crossover."""

import numpy as np

from ...checkpoint.result import FoundPolicy
from ..task import SearchTask
from .random import evaluate, spread_of


# Standard deviation of mutations, relative to that of the initial population.
MUTATION_SPREAD = 0.6
# Fractions of a generation, as in Search for Efficient LLMs (Shen et al. 2024): of 500 parents and children, 350 are
# mutations and 100 crossovers, and the best 300 survive; every score mutates with probability 0.2.
MUTATIONS, SURVIVORS, MUTATION_PROBABILITY = 7 / 9, 0.6, 0.2
MIN_GENERATION = 8


def search(task: SearchTask) -> FoundPolicy:
    """Run evolution with mutation and crossover, scaled from the reference's 500 candidates to the given steps.

    The initial population is that of the random search. There are as many generations as candidates per generation,
    of which there are at least `MIN_GENERATION`: a smaller population soon descends from a single candidate.
    """
    generator = np.random.default_rng(task.plan.seed)
    budget = task.steps - task.finalists
    if budget < 1:
        return task.conclude([np.zeros(task.actions)])
    generation = max(MIN_GENERATION, round(budget**0.5))
    spread = spread_of(task.plan)
    scores = spread * generator.standard_normal((min(budget, generation), task.actions))
    scores[0] = 0
    losses, spent = evaluate(task, scores), len(scores)
    while spent < budget:
        order = np.argsort(losses)[: max(2, round(SURVIVORS * len(losses)))]
        scores, losses = scores[order], losses[order]
        children = []
        for _ in range(min(generation, budget - spent)):
            first, second = generator.integers(len(scores), size=2)
            mask = generator.random(task.actions)
            if generator.random() < MUTATIONS:
                noise = MUTATION_SPREAD * spread * generator.standard_normal(task.actions)
                children.append(scores[first] + noise * (mask < MUTATION_PROBABILITY))
            else:
                children.append(np.where(mask < 0.5, scores[first], scores[second]))
        scores = np.concatenate([scores, children])
        losses = np.concatenate([losses, evaluate(task, np.array(children))])
        spent += len(children)
    return task.conclude([*scores[np.argsort(losses)][: task.finalists]])
