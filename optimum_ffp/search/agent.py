"""The paper's agent: PPO from stable-baselines3 on the one-step environment."""

from collections.abc import Mapping

import numpy as np
import torch
from stable_baselines3 import PPO

from ..config import FFPConfig
from ..errors import FFPError
from .environment import PruningEnvironment
from .schedule import ProgressiveSchedule
from .task import SearchResult, SearchTask


def search_with_ppo(
    task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None = None
) -> SearchResult:
    """Trains the agent under the progressive schedule, then compares finalists at the real target.

    The schedule ends close to the final sparsity, not at it (`α(T) = 0.995`), and the last sample is not the best one.
    So an eighth of the evaluations is kept for finalists: the agent's own answer to the final sparsity and those
    actions of the last half of the search that did best among the candidates of their update, all mapped to the
    final sparsity and evaluated on all windows.

    Args:
        task: What to search for.
        config: Learning rate, clip range, layers, candidates of an update, `α_start`.
        warm_start: Weights of an agent trained at another sparsity (policy transfer).

    Raises:
        FFPError: If `warm_start` is an agent for another number of units or layers.
    """
    finalists = max(1, task.steps // 8)
    candidates = max(2, min(config.candidates, task.steps - finalists))
    updates = max(0, (task.steps - finalists) // candidates)
    schedule = ProgressiveSchedule(updates * candidates, task.sparsity, task.max_samples, config.alpha_start)
    environment = PruningEnvironment(task, schedule, candidates)
    agent = PPO(
        "MlpPolicy",
        environment,
        learning_rate=config.learning_rate,
        clip_range=config.clip_range,
        n_steps=1,
        batch_size=candidates,
        policy_kwargs={"net_arch": list(config.hidden_sizes), "activation_fn": torch.nn.ReLU},
        seed=config.seed,
        device="cpu",
    )
    if warm_start is not None:
        load_agent(agent, warm_start)
    if updates:
        agent.learn(updates * candidates)

    recent = environment.history[-max(finalists, len(environment.history) // 2) :]
    ranked = sorted(recent, key=lambda entry: -entry[1])
    answer, _ = agent.predict(np.array([task.sparsity], dtype=np.float32), deterministic=True)
    last = [answer] + [action for action, _ in ranked]
    weights = {name: tensor.detach().numpy().copy() for name, tensor in agent.policy.state_dict().items()}
    return task.conclude(last[: task.steps - updates * candidates], weights)


def load_agent(agent: PPO, weights: Mapping[str, np.ndarray]) -> None:
    """Policy transfer: the agent goes on from these weights.

    Raises:
        FFPError: If they are those of another architecture.
    """
    own = agent.policy.state_dict()
    for name, tensor in own.items():
        found = weights[name].shape if name in weights else None
        if found != tuple(tensor.shape):
            raise FFPError(
                f"the warm-start agent has {name} of shape {found}, this search needs {tuple(tensor.shape)}; "
                "warm-start from a checkpoint of the same model, searched with the same hidden_sizes"
            )
    agent.policy.load_state_dict({name: torch.from_numpy(np.array(weights[name])) for name in own})
