"""The paper's agent: PPO from stable-baselines3 on a one-step environment, under a progressive schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config.fields import Config, option
from ...errors import FFPError


if TYPE_CHECKING:
    from ...allocation.policy import Unit
    from ...checkpoint.result import FoundPolicy
    from ..task import AgentState, SearchTask


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Options of PPO."""

    learning_rate: float = option(3e-3, "Learning rate of PPO.", paper=1e-4)
    alpha_start: float = option(
        1.0,
        "Fraction of the sparsity and of the search windows at the start of PPO's progressive schedule; 1 disables "
        "the schedule.",
        high=1,
        paper=0.3,
    )
    action_std: float = option(
        0.1,
        "Initial standard deviation of PPO's actions; a warm start uses the loaded agent's.",
        low=1e-6,
        paper=1.0,
    )
    clip_range: float = option(
        0.2, "Clip range of PPO, which limits how much the policy changes per update.", high=1, paper=0.2
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 128), "Widths of the hidden layers of PPO's network.", low=1, paper=(256, 128)
    )


def check_state(state: "AgentState", units: "Sequence[Unit]", options: Options) -> None:
    """Raise `FFPError` if a search can't start from the state of an agent."""
    sizes = [1, *options.hidden_sizes, len(units)]
    layers = [f"mlp_extractor.policy_net.{2 * index}.weight" for index in range(len(options.hidden_sizes))]
    for name, shape in zip([*layers, "action_net.weight"], zip(sizes[1:], sizes)):
        saved = state[name].shape if name in state else None
        if saved != shape:
            raise FFPError(
                f"the warm-start agent has {name} of shape {saved}, this search needs {shape}; warm-start from a "
                "checkpoint of the same model, searched with the same agent and hidden_sizes"
            )


def search(task: "SearchTask", *, options: Options) -> "FoundPolicy":
    """Train the agent under the progressive schedule, then compare finalists at the final sparsity.

    The schedule ends close to the final sparsity (`α(T) = 0.995`), and the last sample is not the best one. So some
    evaluations are reserved for finalists: the agent's deterministic action at the final sparsity, and the actions
    from the second half of the search with the highest advantage over their update. All are mapped to the final
    sparsity and compared. A warm start is the state of an agent trained at another sparsity (policy transfer).
    """
    import numpy as np
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger

    from ..environment import ProgressiveSchedule, PruningEnvironment

    evaluations = task.steps - task.finalists
    # Advantages need two candidates per update. Evaluations left after the last update are spent on finalists.
    candidates = max(2, min(task.plan.candidates, evaluations))
    updates = evaluations // candidates
    max_samples = min(task.plan.update_samples, task.max_samples)
    schedule = ProgressiveSchedule(updates * candidates, task.sparsity, max_samples, start=options.alpha_start)
    environment = PruningEnvironment(task, schedule, candidates)
    agent = PPO(
        "MlpPolicy",
        environment,
        learning_rate=options.learning_rate,
        clip_range=options.clip_range,
        n_steps=1,
        batch_size=candidates,
        policy_kwargs={
            "net_arch": list(options.hidden_sizes),
            "activation_fn": torch.nn.ReLU,
            "log_std_init": math.log(options.action_std),
        },
        seed=task.plan.seed,
        device="cpu",
    )
    # The default logger leaves a temporary folder per search behind.
    agent.set_logger(Logger(folder=None, output_formats=[]))
    if state := task.warm_start:
        names = agent.policy.state_dict()
        agent.policy.load_state_dict({name: torch.from_numpy(np.array(state[name])) for name in names})
    if updates:
        agent.learn(updates * candidates)

    recent = environment.history[-max(task.finalists, len(environment.history) // 2) :]
    ranked = sorted(recent, key=lambda entry: -entry[1])
    learned, _ = agent.predict(np.array([task.sparsity], dtype=np.float32), deterministic=True)
    finalists = [learned] + [action for action, _ in ranked]
    weights = {name: tensor.detach().numpy().copy() for name, tensor in agent.policy.state_dict().items()}
    return task.conclude(finalists[: task.steps - updates * candidates], weights)
