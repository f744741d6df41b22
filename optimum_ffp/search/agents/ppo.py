"""The paper's agent: PPO from stable-baselines3 on a one-step environment, under a progressive schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from ...allocation.policy import Unit
from ...checkpoint.result import SearchResult
from ...config import FFPConfig
from ...errors import FFPError
from ..task import AgentState, SearchTask


# stable-baselines3 needs finite bounds and clips to them; tanh is constant beyond this value.
ACTION_LIMIT = 10.0


def check_state(state: AgentState, units: Sequence[Unit], config: FFPConfig) -> None:
    """Raise `FFPError` if a search can't start from the state of an agent."""
    sizes = [1, *config.hidden_sizes, len(units)]
    layers = [f"mlp_extractor.policy_net.{2 * index}.weight" for index in range(len(config.hidden_sizes))]
    for name, shape in zip([*layers, "action_net.weight"], zip(sizes[1:], sizes)):
        saved = state[name].shape if name in state else None
        if saved != shape:
            raise FFPError(
                f"the warm-start agent has {name} of shape {saved}, this search needs {shape}; warm-start from a "
                "checkpoint of the same model, searched with the same agent and hidden_sizes"
            )


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Train the agent under the progressive schedule, then compare finalists at the final sparsity.

    The schedule ends close to the final sparsity (`α(T) = 0.995`), and the last sample is not the best one. So some
    evaluations are reserved for finalists: the agent's deterministic action at the final sparsity, and the actions
    from the second half of the search with the highest advantage over their update. All are mapped to the final
    sparsity and compared.

    Args:
        task: The search task.
        config: Learning rate, clip range, hidden sizes, initial standard deviation of the actions, candidates and
            windows per update, `α_start`.
        warm_start: Weights of an agent trained at another sparsity (policy transfer), which `check_state` accepts.
    """
    evaluations = task.steps - task.finalists
    # Advantages need two candidates per update. Evaluations left after the last update are spent on finalists.
    candidates = max(2, min(config.candidates, evaluations))
    updates = evaluations // candidates
    max_samples = min(config.update_samples, task.max_samples)
    schedule = ProgressiveSchedule(updates * candidates, task.sparsity, max_samples, start=config.alpha_start)
    environment = PruningEnvironment(task, schedule, candidates)
    agent = PPO(
        "MlpPolicy",
        environment,
        learning_rate=config.learning_rate,
        clip_range=config.clip_range,
        n_steps=1,
        batch_size=candidates,
        policy_kwargs={
            "net_arch": list(config.hidden_sizes),
            "activation_fn": torch.nn.ReLU,
            "log_std_init": math.log(config.action_std),
        },
        seed=config.seed,
        device="cpu",
    )
    # The default logger leaves a temporary folder per search behind.
    agent.set_logger(Logger(folder=None, output_formats=[]))
    if warm_start is not None:
        names = agent.policy.state_dict()
        agent.policy.load_state_dict({name: torch.from_numpy(np.array(warm_start[name])) for name in names})
    if updates:
        agent.learn(updates * candidates)

    recent = environment.history[-max(task.finalists, len(environment.history) // 2) :]
    ranked = sorted(recent, key=lambda entry: -entry[1])
    learned, _ = agent.predict(np.array([task.sparsity], dtype=np.float32), deterministic=True)
    finalists = [learned] + [action for action, _ in ranked]
    weights = {name: tensor.detach().numpy().copy() for name, tensor in agent.policy.state_dict().items()}
    return task.conclude(finalists[: task.steps - updates * candidates], weights)


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
        policies = [self.task.map_scores(action, sparsity) for action in self._actions]
        update = self.step_count // self.num_envs
        windows = self.task.windows(samples, update * self.schedule.max_samples)
        # Eq. 2; 0 if the perplexity is not finite.
        rewards = np.exp(-self.task.excess_losses(policies, sparsity, windows))
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

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> Sequence[bool]:
        return [False] * self.num_envs
