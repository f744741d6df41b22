"""A criterion of your own, with an option: Wanda with less or more weight on the activations.

Write `{"activation_power": 0.7}` to a file and pass it as `--config`:

PYTHONPATH=examples optimum-cli ffp prune -m MODEL OUT --criterion criteria.scaled_wanda --config options.json

In Python, with `examples` on `sys.path`: `FFPConfig(criterion="criteria.scaled_wanda", activation_power=0.7)`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimum_ffp.config.fields import Config, option


if TYPE_CHECKING:
    from torch import Tensor

    from optimum_ffp.analysis.gram import Statistics


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Options of this criterion."""

    activation_power: float = option(
        0.5, "Exponent of the activation norms: 0 ranks by the weights alone, 1 as Wanda does.", stage="measured"
    )


def score(weight: "Tensor", statistics: "Statistics", block: int, options: Options) -> "Tensor":
    """Return `Σ_out |W| · ‖X‖₂^activation_power`, summed over the columns of a group.

    Args:
        weight: Weight of the output projection, shape `[out_features, features]`.
        statistics: Statistics of its input.
        block: Number of columns per group.
        options: Options of this criterion.

    Returns:
        One score per group, shape `[groups]`; groups with the lowest scores are removed first.
    """
    norms = statistics.gram.diagonal().sqrt().to(weight.device)
    return (weight.float().abs().sum(0) * norms**options.activation_power).view(-1, block).sum(1)
