"""What a pruned model was made from: the dense model and the text."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ..config import RecoveryConfig
from ..config.texts import TextMix
from ..errors import FFPError
from ..hub.record import prune_record, recorded_start_token
from ..modeling.loading import LoadOptions


Read = TypeVar("Read")
# Text to train on where that of the prune isn't known, or has fewer tokens than are trained on.
DATASET, SHORT = "c4", "wikitext2"

logger = logging.getLogger(__name__)


def read_teacher(
    student_id: str, teacher_id: str | None, options: LoadOptions, read: Callable[[str, LoadOptions], Read]
) -> tuple[str, Read]:
    """Read something of the dense model of a pruned one, such as its weights or its config.

    Args:
        student_id: Folder or Hub id of the pruned model.
        teacher_id: Hub id, folder or `.gguf` file of the dense model; the one that `ffp_config.json` names if `None`.
        options: How the pruned model is loaded.
        read: Reads it, from its name and with options.

    Returns:
        The name of the dense model, and what `read` returns.

    Raises:
        FFPError: If the pruned model has no record, which the result continues, or the dense model isn't known or
            can't be read.
    """
    record = prune_record(student_id, **options.hub())
    if not record:
        raise FFPError(
            f"{student_id} has no record of its pruning, or it can't be reached; copy ffp_config.json from the "
            "checkpoint that it was made from"
        )
    if teacher_id is not None:
        return teacher_id, read(teacher_id, replace(options, revision=None))
    provenance = record.get("provenance", {})
    teacher_id = provenance.get("base_model")
    try:
        if not teacher_id:
            raise FFPError("it has no record of it")
        if not provenance.get("revision") and "/" not in teacher_id:
            # There may be another model of this name on the Hub, or here.
            raise FFPError(
                f"its record names {teacher_id} without a revision on the Hub, so that it may be a local one"
            )
        return teacher_id, read(teacher_id, replace(options, revision=provenance.get("revision")))
    except FFPError as error:
        raise FFPError(
            f"the dense model of {student_id} is needed: {error}; name it by --teacher (teacher): a Hub id, folder or "
            ".gguf file"
        ) from None


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
    found = record.get("dataset", DATASET)
    given = record.get("provenance", {}).get("given_data")
    # The record has the names of local files without their folders.
    if not given and all(text.hub_dataset and text.name != SHORT for text in TextMix.parse(found)):
        column = config.text_column or record.get("text_column")
        start_token = config.start_token or recorded_start_token(record)
        return replace(config, dataset=found, text_column=column, start_token=start_token)
    logger.warning(
        "%s was pruned on %s and is trained on %s; name a text by --dataset (dataset)",
        student_id,
        "given windows" if given else found,
        DATASET,
    )
    return replace(config, dataset=DATASET, start_token=config.start_token or "auto")
