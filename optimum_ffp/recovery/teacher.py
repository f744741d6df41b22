"""The teacher of a pruned model."""

import logging
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ..errors import FFPError
from ..hub.naming import model_name
from ..hub.record import require_record
from ..modeling.loading import LoadOptions, find_dense
from ..utils.lm_head import head_of
from ..vocabulary.trimmed import TrimmedVocabulary


logger = logging.getLogger(__name__)


def find_teacher(student_id: str, teacher_id: str | None, options: LoadOptions) -> tuple[str, LoadOptions]:
    """Return the dense model of a pruned model, by default the one in `ffp_config.json`, and the options to load it.

    The given options are those of the pruned model. Raises `FFPError` if it has no record, or that names no model on
    the Hub.
    """
    require_record(student_id, **options.hub())
    dense_id, dense_options, _ = find_dense(student_id, replace(options, base_model=teacher_id))
    return dense_id, dense_options


def check_teacher(
    student_id: str,
    student: PreTrainedModel,
    teacher_id: str,
    teacher: PreTrainedModel,
    options: LoadOptions,
    vocabulary: TrimmedVocabulary | None = None,
) -> bool:
    """Return whether the teacher is the dense model that a pruned model's record names, and warn if it isn't.

    Arguments are as for `FFPRecovery`, and the student's vocabulary if it is trimmed. Raises `FFPError` if both models
    have the same weights, or other vocabularies.
    """
    rows, teacher_rows = (len(head_of(model).weight) for model in (student, teacher))
    if rows != (len(vocabulary.kept) if vocabulary else teacher_rows):
        raise FFPError(
            f"the pruned model has logits for {rows} tokens, and the teacher for {teacher_rows}; pass the model that "
            "was pruned, or one with the same vocabulary"
        )
    pairs = [*zip(student.parameters(), teacher.parameters())]
    if all(one.shape == other.shape and torch.equal(one.to(other), other) for one, other in pairs):
        raise FFPError(
            f"{teacher_id} is the pruned model itself; pass the dense model that it was pruned from with --teacher "
            "(teacher)"
        )
    record = require_record(student_id, **options.hub())
    base, recorded = record.provenance.base_model, record.provenance.parameters["dense"]
    # The option `base_model` names the origin of a local model.
    names, parameters = {model_name(base), model_name(record.options["base_model"] or base)}, teacher.num_parameters()
    is_dense = model_name(teacher_id) in names and parameters == recorded
    if not is_dense:
        logger.warning(
            f"the teacher {teacher_id} ({parameters:,} parameters) is not the dense model that {student_id} was "
            f"pruned from, according to its record: {base} ({recorded:,} parameters)"
        )
    return is_dense
