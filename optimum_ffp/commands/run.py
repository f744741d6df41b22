"""What `ffp prune` and `ffp recover` have in common: checks, plans, `--resume` and uploads."""

import hashlib
import logging
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.pushing import push_checkpoint
from ..config import FFPConfig, RecoveryPlan
from ..config.fields import argument_name
from ..errors import FFPError
from ..planning.estimate import Estimate
from ..planning.preflight import find_problems, free_disk
from ..utils import processes
from ..utils.json import to_json
from ..utils.resume import begin_work, work_folder_of
from ..utils.tracking import check_trackers
from .errors import USER_ERROR
from .records import check_json, write_records


logger = logging.getLogger(__name__)


class Run:
    """A `prune` or `recover` command, which joins other processes. Several repositories have `names` as suffixes."""

    def __init__(self, command: str, args: Namespace, folders: Sequence[str], names: Sequence[str] = ()):
        # Before anything that depends on the device of this process.
        processes.join(args.device)
        check_trackers(args.report_to)
        check_json(args.json)
        self.command, self.args, self.folders, self.repositories = command, args, folders, []
        self.work_folder = work_folder_of(folders[0])
        self.local_processes = max(processes.local_count(), args.num_processes or 1)
        if args.push_to_hub and args.hub_model_id and len(folders) > 1:
            self.repositories = [f"{args.hub_model_id}-{name}" for name in names]
        elif args.push_to_hub:
            self.repositories = [args.hub_model_id or Path(folder).name for folder in folders]
        for name in ("hub_model_id", "private"):
            if getattr(args, name) is not None and not args.push_to_hub:
                logger.warning(f"{argument_name(name)} is ignored without --push-to-hub")

    def request_id(self, config: FFPConfig | RecoveryPlan, *more: Any) -> str:
        """Return a digest of what the result depends on, by which `--resume` recognizes it."""
        # The batch size only changes the last digits.
        options = config.to_dict() | {"batch_size": None}
        request = [self.args.model, self.args.revision, self.args.dtype, options, config.hash_files(), *more]
        return hashlib.sha256(to_json(request).encode()).hexdigest()[:16]

    def is_finished(self, request: str, found: Iterable[str | None]) -> bool:
        """Return whether `--resume` has found the request in all output folders; then clean up."""
        if not self.args.resume or self.args.overwrite or not processes.from_main({*found} == {request}):
            return False
        if processes.is_main():
            begin_work(self.work_folder, resume=False)
            print(f"already finished, nothing to do: {', '.join(self.folders)}; start over with --overwrite")
        return True

    def begin(
        self,
        estimate: Estimate,
        config: FFPConfig | RecoveryPlan,
        models: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Raise the first problem, or prepare the work folder. With `--plan`, print all and return `False` instead."""
        problems = find_problems(
            config,
            models=[self.args.model, *models],
            folders=self.folders,
            disk=estimate.disk,
            overwrite=self.args.overwrite,
            resume=self.args.resume,
            files=files,
            repositories=self.repositories,
        )
        if self.args.plan:
            self._show_plan(estimate, problems)
        elif processes.is_main():
            for problem in problems:
                raise problem
            for warning in estimate.warnings:
                logger.warning(warning)
            begin_work(self.work_folder, self.args.resume)
        return not self.args.plan

    def _show_plan(self, estimate: Estimate, problems: Iterable[FFPError]) -> None:
        """Print required and available resources, also to `--json FILE`; exit with code 2 if there are problems."""
        found, folder = [*dict.fromkeys(map(str, [*problems, *estimate.problems]))], self.folders[0]
        record = {"command": self.command, "role": "plan", "model": folder, "tokens": estimate.tokens}
        record |= dict(zip(("min_seconds", "max_seconds"), estimate.seconds))
        record |= {"warnings": "\n".join(estimate.warnings), "problems": "\n".join(found)}
        free = free_disk(folder)
        for name, (needed, available) in (estimate.memory | {"disk": (estimate.disk, free)}).items():
            record |= {f"needed_bytes/{name}": needed, f"available_bytes/{name}": available}
        if estimate.calibration:
            record |= {name: getattr(estimate, name) for name in ("calibration", "lora", "offload")}
        if estimate.text:
            record["text"] = estimate.text
        record |= {f"quantized_bytes/{name}": size for name, size in estimate.quantized.items()}
        write_records(self.args.json, [record])
        print("\n".join([estimate.describe(free), *(f"problem: {problem}" for problem in found)]))
        if found:
            sys.exit(USER_ERROR)

    def upload(self) -> None:
        """Upload the folders with `--push-to-hub`, and print the URLs. A plan uploads nothing."""
        if processes.is_main() and not self.args.plan:
            for folder, repository in zip(self.folders, self.repositories):
                print(f"uploaded: {push_checkpoint(folder, repository, private=self.args.private)}")
