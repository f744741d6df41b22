"""The record of a checkpoint, `ffp_config.json`: what it contains, its reader and its writer."""

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..allocation.policy import PruningPolicy, UnitSize, block_parameters
from ..config import FFPConfig
from ..config.fields import checked, expand
from ..errors import convert_errors, named_line
from .json import write_json


RECORD = "ffp_config.json"
SCHEMA_VERSION = 1
Row = dict[str, Any]
Self = TypeVar("Self", bound="Section")


@dataclass(frozen=True)
class Section:
    """Part of a record. Keys are the names of its fields, and fields that equal their default are left out."""

    @classmethod
    def from_dict(cls: type[Self], content: Mapping[str, Any]) -> Self:
        """Restore the result of `to_dict`. Raises `TypeError` if a key is missing or a value has another type."""
        return cls(**checked(cls, {one.name: content[_key(one)] for one in fields(cls) if _key(one) in content}))

    def to_dict(self) -> Row:
        """Return the JSON-ready form."""
        values = ((one, getattr(self, one.name)) for one in fields(self))
        return {
            _key(one): value
            for one, value in values
            if value != (one.default if one.default_factory is MISSING else one.default_factory())
        }


def damage_errors(source: str | os.PathLike) -> AbstractContextManager[None]:
    """Convert the errors of a record whose entries can't be used to an `FFPError`."""
    return convert_errors(lambda error: f"{source} has a damaged {RECORD}: {named_line(error)}; copy the original")


def _key(one: Field) -> str:
    return one.name.rstrip("_")


@dataclass(frozen=True)
class PolicyRecord(Section):
    """The policy: removed fraction, `parameters` of the `dense` and the `pruned` units, and a row per unit."""

    sparsity: float
    parameters: dict[str, int]
    units: tuple[UnitSize, ...]

    @classmethod
    def of(cls, policy: PruningPolicy) -> "PolicyRecord":
        """Return the record of a policy."""
        parameters = {"dense": block_parameters(policy.units), "pruned": policy.kept_parameters}
        return cls(policy.sparsity, parameters, policy.rows)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "PolicyRecord":
        """Restore the result of `to_dict`."""
        return super().from_dict({**content, "units": tuple(map(UnitSize.from_dict, content["units"]))})

    def to_dict(self) -> Row:
        """Return the JSON-ready form."""
        return super().to_dict() | {"units": [row.to_dict() for row in self.units]}


@dataclass(frozen=True, kw_only=True)
class SearchRecord(Section):
    """The search, as described in `SearchResult`."""

    method: str
    seed: int
    candidate_evaluations: int
    tokens_evaluated: int
    non_finite: int
    calibrated_on: Row
    warm_start: str | None
    note: str | None
    budget: list[Row]
    perplexity: Row | None = None
    baselines: dict[str, float | None] = field(default_factory=dict)


class Measured(Section):
    """A step after which perplexity was measured on test windows of each text."""

    perplexity: Row
    other_texts: list[Row]

    @property
    def tests(self) -> list[Row]:
        """Perplexities by model and description of the test windows, of each text."""
        return [self.perplexity, *self.other_texts]


@dataclass(frozen=True, kw_only=True)
class Provenance(Measured):
    """The models of a prune, and what was measured, as described in `PruningResult`."""

    base_model: str
    revision: str | None
    pruned_from: str | None
    dtype: str
    compute_dtype: str
    trust_remote_code: bool
    given_data: bool
    license: dict[str, str]
    versions: dict[str, str]
    parameters: dict[str, int]
    model_sparsity: float
    perplexity: Row
    other_texts: list[Row]
    samples: list[dict[str, str]]
    held_out: Row
    experts: Row = field(default_factory=dict)
    vocabulary: Row = field(default_factory=dict)
    tokens: dict[str, int]
    processes: int
    seconds: dict[str, float]
    peak_gib: dict[str, float]

    @property
    def tokens_read(self) -> int:
        """Tokens in forward passes over all stages, except the evaluation on test windows."""
        return sum(count for stage, count in self.tokens.items() if stage != "evaluation")

    @property
    def is_on_hub(self) -> bool:
        """Whether the dense model is on the Hub. Records name local models without their folders."""
        return self.revision is not None or "/" in self.base_model


@dataclass(frozen=True, kw_only=True)
class RecoveryRecord(Measured):
    """The record of a recovery.

    Attributes:
        options: Options, from `RecoveryConfig.to_dict`.
        source: Folder or Hub id of the pruned model.
        teacher: Hub id, folder or file of the teacher.
        dense_teacher: Whether that is the dense model that the pruned model was created from.
        windows_per_step: Windows per optimizer step over all processes.
        passes: Number of passes over each text.
        curve: One record per evaluation, the first before training: `step`, `tokens`, and on held-out windows `kl`
            (divergence from the teacher, in nats per token) and `perplexity`.
        kept: The record in `curve` for the saved weights, which has the lowest divergence.
        held_out: Description of the held-out windows.
        samples: What the recovered model writes greedily, by prompt.
        compute_dtypes: Compute dtypes of the losses on test windows by model: `dense` and `pruned`, which is also that
            of the recovered model.
        dtype: Dtype of the saved weights.
        bf16: Whether training used bfloat16.
        seconds: Time of the recovery.
        peak_gib: Its peak memory.
        request: Digest of the command, by which `--resume` recognizes its result.
        tokens: Tokens that the model was trained on.
        perplexity: Description of the test windows of the first text, with perplexities by model: `dense` (the
            teacher), `pruned` (before this training) and `recovered`.
        other_texts: The same for each further text.
    """

    options: Row
    source: str
    teacher: str
    dense_teacher: bool
    window_length: int
    windows_per_step: int
    passes: dict[str, float]
    curve: list[Row]
    kept: Row
    held_out: Row
    samples: dict[str, str]
    compute_dtypes: dict[str, str]
    dtype: str
    bf16: bool
    seconds: float
    peak_gib: float = 0.0
    processes: int
    versions: dict[str, str]
    request: str | None = None
    tokens: int
    perplexity: Row
    other_texts: list[Row]


@dataclass(frozen=True, kw_only=True)
class ModelRecord(Section):
    """What the card needs to describe the use of a model."""

    class_: str
    code_file: str | None
    language_model_only: bool
    chat: bool
    linear: bool
    gguf: str | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a checkpoint.

    Attributes:
        options: All options of the prune that were in effect.
        policy: What every unit keeps.
        search: How the policy was found.
        provenance: The models of the prune, and what was measured.
        model: The model that was saved.
        request: Digest of the command, by which `--resume` recognizes its result.
        ffp_version: Version of optimum-ffp.
        run: Id of the run that wrote the checkpoint, if it had a work folder.
        files: Names of all files that were written.
        recovery: The recoveries, in order.
        quantization: Scheme, group size, calibration windows and version, if the weights are quantized.
    """

    options: Row
    policy: PolicyRecord
    search: SearchRecord
    provenance: Provenance
    model: ModelRecord
    request: str | None
    ffp_version: str
    run: str | None = None
    files: tuple[str, ...] = ()
    recovery: tuple[RecoveryRecord, ...] = ()
    quantization: Row | None = None

    @property
    def start_token(self) -> str:
        """The option `start_token` of the last recovery, or of the prune."""
        steps = self.options, *(step.options for step in self.recovery)
        return next(step["start_token"] for step in reversed(steps) if step["start_token"])

    @property
    def window_length(self) -> int:
        """Tokens per test window of the last recovery, or of the prune."""
        return (self.provenance, *self.recovery)[-1].perplexity["window_length"]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Record":
        """Restore the result of `to_dict`. Raises `KeyError` or `TypeError` if it isn't one."""
        names = {one.name for one in fields(cls)} - {"options"}
        values = {name: value for name, value in content.items() if name in names}
        values |= {name: kind.from_dict(content[name]) for name, kind in SECTIONS.items()}
        values["files"] = tuple(content.get("files", ()))
        values["recovery"] = tuple(map(RecoveryRecord.from_dict, content.get("recovery", ())))
        options = content.keys() - names - {"schema_version"}
        values["options"] = checked(FFPConfig, {name: content[name] for name in content if name in options})
        return cls(**checked(cls, values))

    def to_dict(self) -> Row:
        """Return the JSON-ready form, with the options at its top level."""
        values = self.options | {name: getattr(self, name).to_dict() for name in SECTIONS}
        values |= {"request": self.request, "ffp_version": self.ffp_version, "schema_version": SCHEMA_VERSION}
        values |= {"run": self.run, "files": [*self.files]}
        if self.recovery:
            values["recovery"] = [step.to_dict() for step in self.recovery]
        return values | ({"quantization": self.quantization} if self.quantization else {})

    @classmethod
    def read(cls, file: str | os.PathLike) -> "Record | None":
        """Return the record in a file or a folder; `None` if there is none. Raises `FFPError` if it is damaged."""
        path = Path(expand(file))
        try:
            content = json.loads((path / RECORD if path.is_dir() else path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or "schema_version" not in content:
            return None
        with damage_errors(file):
            return cls.from_dict(content)

    def write(self, folder: Path) -> None:
        """Write the record to a folder."""
        write_json(folder / RECORD, self.to_dict())


SECTIONS = {"policy": PolicyRecord, "search": SearchRecord, "provenance": Provenance, "model": ModelRecord}
