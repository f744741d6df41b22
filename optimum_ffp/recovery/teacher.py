"""What a pruned model was made from: the dense model and the text."""

import logging
from dataclasses import replace

from ..config import RecoveryConfig
from ..config.texts import TextMix
from ..errors import FFPError
from ..hub.record import prune_record, recorded_start_token
from ..modeling.loading import LoadOptions


# Text to train on where that of the prune isn't known, or has fewer tokens than are trained on.
DATASET, SHORT = "c4", "wikitext2"

logger = logging.getLogger(__name__)


def find_teacher(student_id: str, teacher_id: str | None, options: LoadOptions) -> tuple[str, LoadOptions]:
    """Return the name of the dense model of a pruned one, and how it is loaded.

    Args:
        student_id: Folder or Hub id of the pruned model.
        teacher_id: Hub id, folder or `.gguf` file of the dense model; the one that `ffp_config.json` names if `None`.
        options: How the pruned model is loaded.

    Raises:
        FFPError: If the pruned model has no record, which the result continues, or it names no model of the Hub.
    """
    record = prune_record(student_id, **options.hub())
    if not record:
        raise FFPError(
            f"{student_id} has no record of its pruning, or it can't be reached; copy ffp_config.json from the "
            "checkpoint that it was made from"
        )
    if teacher_id is not None:
        return teacher_id, replace(options, revision=None)
    provenance = record.get("provenance", {})
    name, revision = provenance.get("base_model", ""), provenance.get("revision")
    # The record of a local model has its name alone, which another may have on the Hub, or here.
    if not (revision or "/" in name):
        raise FFPError(
            f"the dense model of {student_id} is needed, which its record doesn't name on the Hub; name it by "
            "--teacher (teacher): a Hub id, folder or .gguf file"
        )
    return name, replace(options, revision=revision)


def with_dataset(config: RecoveryConfig, student_id: str, options: LoadOptions) -> RecoveryConfig:
    """Return the config with a text to train on: if it names none, that of the prune if it is a long one of the Hub.

    Its column and start token are then those of the prune too.

    Args:
        config: Options of the recovery.
        student_id: Folder or Hub id of the pruned model.
        options: How it is loaded.
    """
    config = config.resolve()
    if config.dataset is not None:
        return replace(config, start_token=config.start_token or "auto")
    record = prune_record(student_id, **options.hub())
    dataset = record.get("dataset", DATASET)
    given = record.get("provenance", {}).get("given_data")
    # The record has the names of local files without their folders.
    if not given and all(text.hub_dataset and text.name != SHORT for text in TextMix.parse(dataset)):
        return replace(
            config,
            dataset=dataset,
            text_column=config.text_column or record.get("text_column"),
            start_token=config.start_token or recorded_start_token(record),
        )
    pruned_on = "given windows" if given else dataset
    logger.warning("%s was pruned on %s, is trained on %s: name a text by --dataset", student_id, pruned_on, DATASET)
    return replace(config, dataset=DATASET, start_token=config.start_token or "auto")
