"""The pruning environment of PPO. Imported when PPO runs, since stable-baselines3 takes seconds."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from .schedule import ProgressiveSchedule
from .task import SearchTask


# stable-baselines3 needs finite bounds and clips to them; tanh is constant beyond this value.
ACTION_LIMIT = 10.0


class PruningEnvironment(VecEnv):
    """A vectorized one-step environment in which all candidates of an update are evaluated in one call.

    The state is the current target sparsity `σ_t`; the action is a raw score per unit; the reward is `PPL_dense / PPL`
    on `N_eval(t)` windows. All candidates of an update share `t`, and so sparsity and windows. Updates take windows in
    turn if there are more than `N_max`.

    Args:
        task: The search task.
        schedule: Curricula of sparsity and fidelity.
        candidates: Number of candidates per update.
    """

    def __init__(self, task: SearchTask, schedule: ProgressiveSchedule, candidates: int):
        self.task, self.schedule = task, schedule
        self.step_count = 0
        self.history: list[tuple[np.ndarray, float]] = []
        observation = spaces.Box(0.0, 1.0, shape=(1,), dtype=np.float32)
        action = spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, shape=(task.actions,), dtype=np.float32)
        super().__init__(candidates, observation, action)

    def _observe(self) -> np.ndarray:
        return np.full((self.num_envs, 1), self.schedule.sparsity(self.step_count), dtype=np.float32)

    def reset(self) -> np.ndarray:
        return self._observe()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        sparsity, samples = self.schedule.sparsity(self.step_count), self.schedule.samples(self.step_count)
        lower = sparsity if self.schedule.start < 1 else None
        policies = [self.task.map_scores(action, lower) for action in self._actions]
        update = self.step_count // self.num_envs
        windows = self.task.windows(samples, update * self.schedule.max_samples)
        # Eq. 2; 0 if the perplexity is not finite.
        rewards = np.exp(-self.task.excess_losses(policies, windows, lower))
        # Rewards at different sparsities are not comparable, but advantages within an update are.
        advantages = rewards - rewards.mean()
        self.history += [(action.copy(), float(gain)) for action, gain in zip(self._actions, advantages)]
        self.step_count += self.num_envs
        done = np.ones(self.num_envs, dtype=bool)
        return self._observe(), rewards.astype(np.float32), done, [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(self, method_name)(*args, **kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs
