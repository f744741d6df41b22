"""The one-step environment: an observation, an action, a reward, and the episode is over."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from .schedule import ProgressiveSchedule
from .task import SearchTask


# tanh is flat beyond; stable-baselines3 wants finite bounds and clips to them.
SCORE_LIMIT = 10.0


class PruningEnvironment(VecEnv):
    """A vectorised one-step environment in which all candidates of an update are evaluated in one call.

    The state is the current target sparsity `σ_t` alone; the action is a raw score for every unit; the reward is
    `PPL_dense / PPL` on `N_eval(t)` windows. All candidates of an update share `t`, and so sparsity and windows.

    Args:
        task: What to search for.
        schedule: Curricula of sparsity and fidelity.
        candidates: Candidates of an update.
    """

    def __init__(self, task: SearchTask, schedule: ProgressiveSchedule, candidates: int):
        self.task, self.schedule = task, schedule
        self.step_count = 0
        self.history: list[tuple[np.ndarray, float]] = []
        observation = spaces.Box(0.0, 1.0, shape=(1,), dtype=np.float32)
        action = spaces.Box(-SCORE_LIMIT, SCORE_LIMIT, shape=(task.actions,), dtype=np.float32)
        super().__init__(candidates, observation, action)

    def _observe(self) -> np.ndarray:
        return np.full((self.num_envs, 1), self.schedule.sparsity(self.step_count), dtype=np.float32)

    def reset(self) -> np.ndarray:
        return self._observe()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        sparsity, samples = self.schedule.sparsity(self.step_count), self.schedule.samples(self.step_count)
        policies = [self.task.map_scores(action, sparsity) for action in self._actions]
        rewards = self.task.rewards(policies, sparsity, self.task.windows(samples))
        # Rewards of different sparsities don't compare; how a candidate did among those of its update does.
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

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> Sequence[bool]:
        return [False] * self.num_envs
