"""The state of a training in safetensors and JSON, in place of the pickles of `Trainer`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..errors import FFPError
from ..utils.json import from_exact_json, to_exact_json


OPTIMISER_FILE, SETTINGS_FILE = "optimizer.safetensors", "optimizer.json"
RANDOM_FILE = "random.safetensors"
SCHEDULE_FILE = "schedule.json"


def save_optimiser(optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Saves the state of an optimiser: its tensors, and all else as JSON."""
    state = optimiser.state_dict()
    tensors, others = {}, {}
    for number, of_parameter in state["state"].items():
        for name, value in of_parameter.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value.detach().cpu().contiguous()
            else:
                others[f"{number}.{name}"] = value
    save_file(tensors, folder / OPTIMISER_FILE)
    groups = {"param_groups": state["param_groups"], "others": others}
    (folder / SETTINGS_FILE).write_text(to_exact_json(groups), encoding="utf-8")


def load_optimiser(optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Restores the state of `save_optimiser`.

    Raises:
        FFPError: If it is the state of another optimiser.
    """
    settings = from_exact_json((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**load_file(folder / OPTIMISER_FILE), **settings["others"]}.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = settings["param_groups"]
    # JSON has lists only.
    own = optimiser.state_dict()["param_groups"]
    for group, like in zip(groups, own):
        group |= {name: tuple(group[name]) for name, value in like.items() if isinstance(value, tuple)}
    try:
        optimiser.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise FFPError(f"{folder} holds the state of another training ({error}); delete it to start again") from None


def save_schedule(schedule: Any, folder: Path) -> None:
    """Saves the state of a learning rate schedule."""
    state = {name: value for name, value in schedule.state_dict().items() if _is_plain(value)}
    (folder / SCHEDULE_FILE).write_text(to_exact_json(state), encoding="utf-8")


def load_schedule(schedule: Any, folder: Path) -> None:
    """Restores the state of `save_schedule`."""
    state = from_exact_json((folder / SCHEDULE_FILE).read_text(encoding="utf-8"))
    schedule.load_state_dict(schedule.state_dict() | state)


def save_random_state(folder: Path, process: int) -> None:
    """Saves the state of torch's random generators of this process, which dropout uses."""
    save_file(_random_states(), folder / f"{process}-{RANDOM_FILE}")


def load_random_state(folder: Path, process: int) -> None:
    """Restores the state of `save_random_state`; nothing if there is none of this process."""
    path = folder / f"{process}-{RANDOM_FILE}"
    if not path.is_file():
        return
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if "device" in states and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(states["device"])


def is_complete(folder: Path) -> bool:
    """Whether everything of a checkpoint of `Trainer` was written before the process ended."""
    try:
        return isinstance(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def stopped_early(folder: Path, patience: int) -> int | None:
    """Step of a checkpoint at which `EarlyStoppingCallback` has ended the training; `None` if it has not."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    found = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {}).get("attributes", {})
    return state["global_step"] if found.get("early_stopping_patience_counter", 0) >= patience else None


def _random_states() -> Mapping[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.accelerator.is_available():
        states["device"] = torch.get_device_module().get_rng_state()
    return states


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool, list)) or value is None
