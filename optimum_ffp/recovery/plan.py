"""The plan of a recovery, which fills in what a config leaves to the prune."""

import logging
from typing import Any

from ..config import RecoveryConfig, RecoveryPlan
from ..config.recovery import BATCH_TOKENS, MIN_STEPS
from ..config.texts import TextMix
from ..config.training import ADAPTER_RATE
from ..hub.record import require_record
from ..modeling.loading import LoadOptions


logger = logging.getLogger(__name__)
# Text to recover on by default, and a text that is too short for it.
RECOVERY_TEXT, SHORT_TEXT = "c4", "wikitext2"


def make_recovery_plan(config: RecoveryConfig, student_id: str, options: LoadOptions) -> RecoveryPlan:
    """Plan the recovery of a pruned model, on the text of the prune by default if it is a large dataset on the Hub.

    The column and start token of the prune are then defaults too.
    """
    values = vars(config)
    defaults: dict[str, Any] = {
        "start_token": "auto",
        "batch_tokens": min(BATCH_TOKENS[config.preset], max(1, int(config.max_tokens) // MIN_STEPS)),
        "learning_rate": ADAPTER_RATE if config.lora else None,
    }
    if config.dataset is None:
        record = require_record(student_id, **options.hub())
        dataset, given_data = record.options["dataset"], record.provenance.given_data
        # Local files may be elsewhere.
        if not given_data and all(text.hub_dataset and text.name != SHORT_TEXT for text in TextMix.parse(dataset)):
            defaults |= {
                "dataset": dataset,
                "start_token": record.start_token,
                "text_column": record.options["text_column"],
            }
        else:
            defaults["dataset"] = RECOVERY_TEXT
            pruned_on = "the given windows" if given_data else f"the pruning text {dataset}"
            logger.warning(f"training on {RECOVERY_TEXT} instead of {pruned_on}; choose a text with --dataset")
    return RecoveryPlan(**values | {name: values[name] or value for name, value in defaults.items()})
