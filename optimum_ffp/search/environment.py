"""The pruning environment of PPO and its schedule. Imported when PPO runs, since stable-baselines3 takes seconds."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from .task import SearchTask


# stable-baselines3 needs finite bounds and clips to them; tanh is constant beyond this value.
ACTION_LIMIT = 10.0


@dataclass(frozen=True)
class ProgressiveSchedule:
    """Sparsity and fidelity curricula governed by one sigmoid.

    The paper prints Eq. 3 with `exp(-k (t0 - t))`, with which `α` would decrease in `t`; its text describes a
    curriculum from easy to hard, so the sign is flipped. Its k = 0.01 and t0 = 500 are for 1000 steps: for `T` steps
    `t0 = T / 2` and `k = 5 / t0`.

    Attributes:
        steps: Total number of candidate evaluations, `T`.
        final_sparsity: `S_final`.
        max_samples: Number of windows per candidate at full fidelity, `N_max`.
        start: `α_start`, the initial fraction of sparsity and windows; 1 disables the curriculum.
    """

    steps: int
    final_sparsity: float
    max_samples: int
    start: float = 0.3

    def alpha(self, step: int) -> float:
        """Return `α(t) = α_start + (1 - α_start) · sigmoid(k (t - t0))`."""
        midpoint = self.steps / 2
        steepness = 5 / midpoint
        return self.start + (1 - self.start) / (1 + math.exp(-steepness * (step - midpoint)))

    def sparsity(self, step: int) -> float:
        """Return `σ_t = S_final · α(t)` (Eq. 4)."""
        return self.final_sparsity * self.alpha(step)

    def samples(self, step: int) -> int:
        """Return `N_eval(t) = round(N_max · α(t))`, at least 1 (Eq. 5)."""
        return max(1, round(self.max_samples * self.alpha(step)))


class CandidateSpaces(Env):
    """Spaces of a single candidate; `PruningEnvironment` evaluates all candidates at once."""

    observation_space = spaces.Box(0.0, 1.0, shape=(1,), dtype=np.float32)

    def __init__(self, actions: int):
        self.action_space = spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, shape=(actions,), dtype=np.float32)


class PruningEnvironment(DummyVecEnv):
    """A vectorized one-step environment in which all candidates of an update are evaluated in one call.

    The state is the current target sparsity `σ_t`; the action is a raw score per unit; the reward is `PPL_dense / PPL`
    on `N_eval(t)` windows. All candidates of an update share `t`, and so sparsity and windows. Updates take windows in
    turn if there are more than `N_max`.
    """

    def __init__(self, task: SearchTask, schedule: ProgressiveSchedule, candidates: int):
        self.task, self.schedule, self.step_count = task, schedule, 0
        self.history: list[tuple[np.ndarray, float]] = []
        super().__init__([partial(CandidateSpaces, task.actions)] * candidates)

    def reset(self) -> np.ndarray:
        return np.full((self.num_envs, 1), self.schedule.sparsity(self.step_count), dtype=np.float32)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        sparsity, samples = self.schedule.sparsity(self.step_count), self.schedule.samples(self.step_count)
        lower = sparsity if self.schedule.start < 1 else None
        policies = [self.task.map_scores(action, lower) for action in self.actions]
        update = self.step_count // self.num_envs
        windows = self.task.windows(samples, update * self.schedule.max_samples)
        # Eq. 2; 0 if the perplexity is not finite.
        rewards = np.exp(-self.task.excess_losses(policies, windows, lower))
        # Rewards at different sparsities are not comparable, but advantages within an update are.
        advantages = rewards - rewards.mean()
        self.history += [(action.copy(), float(gain)) for action, gain in zip(self.actions, advantages)]
        self.step_count += self.num_envs
        done = np.ones(self.num_envs, dtype=bool)
        return self.reset(), rewards.astype(np.float32), done, [{} for _ in range(self.num_envs)]
