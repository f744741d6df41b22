"""`optimum-cli ffp prune`."""

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand

from ..config.fields import AGENT
from ..config.fields import READ_WHEN as OPTIONS_READ_WHEN
from .arguments import ON_THE_HUB, TO_THE_HUB, check_read, given_options, output_name
from .errors import one_line_endings
from .launching import run_in_processes
from .prune_options import parse_args_ffp_prune


if TYPE_CHECKING:
    from ..config import FFPConfig

READ_WHEN = {
    "revision": ON_THE_HUB,
    "hub_model_id": TO_THE_HUB,
    "private": TO_THE_HUB,
}
LOAD_OPTIONS = ("device", "dtype", "offload", "trust_remote_code", "revision", "token")


class FFPPruneCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp prune`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_prune(parser)

    def run(self) -> None:
        """Runs the command; an `FFPError` ends it with one line and exit code 2."""
        with one_line_endings("interrupted; run the same command with --resume to continue"):
            check_read(given_options(self.parser, self.args), READ_WHEN, self.args)
            run_in_processes(None if self.args.plan else self.args.num_processes, lambda: prune(self.args))


def read_config(args: Namespace) -> "FFPConfig":
    """The config: that of `--config` if given, overridden by the options of the command line."""
    from ..config import FFPConfig

    given = {name: getattr(args, name, None) for name in FFPConfig.option_names() if name != "sparsity"}
    given = {name: value for name, value in given.items() if value is not None}
    if args.sparsity:
        given["sparsity"] = args.sparsity[0]
    config = FFPConfig.from_file(args.config, **given) if args.config is not None else FFPConfig(**given)
    # Only options on the command line must be read: a file may hold options of other methods.
    typed = [*given] if args.warm_start is None else [*given, "warm_start"]
    check_read(typed, OPTIONS_READ_WHEN | {"warm_start": AGENT}, config)
    return config


def output_folders(args: Namespace, sparsities: list[float]) -> list[str]:
    """One folder per sparsity: the output folder, or one with the percentage in its name."""
    from ..errors import FFPError

    if args.output and len(sparsities) == 1:
        return [output_name(args)]
    folders = [f"{output_name(args)}-ffp-{100 * sparsity:g}" for sparsity in sparsities]
    twice = [folder for folder, count in Counter(folders).items() if count > 1]
    if twice:
        raise FFPError(f"two values of --sparsity have the same folder, {twice[0]}; give each once")
    return folders


def repository_names(args: Namespace, folders: list[str], sparsities: list[float]) -> list[str | None]:
    """Repository per folder, or `None` without `--push-to-hub`."""
    if not args.push_to_hub:
        return [None] * len(folders)
    if args.hub_model_id and len(folders) > 1:
        return [f"{args.hub_model_id}-{100 * sparsity:g}" for sparsity in sparsities]
    return [args.hub_model_id or Path(folder).name for folder in folders]


def prune(args: Namespace) -> None:
    """Prunes at every requested sparsity; several share one agent."""
    config = read_config(args)
    sparsities = args.sparsity or [config.sparsity]
    folders = output_folders(args, sparsities)

    from ..utils import processes

    # Before anything that depends on the device of this process.
    processes.join(args.device)
    from ..checkpoint.pareto import front_files
    from ..modeling.loading import LoadOptions, read_model_config
    from ..planning.estimate import estimate_prune
    from ..planning.preflight import find_problems
    from ..utils.resume import begin_work, work_folder_of
    from ..utils.tracking import check_trackers
    from .summary import show_plan

    work = work_folder_of(folders[0])
    front = front_files(f"{output_name(args)}-ffp-pareto") if len(sparsities) > 1 else {}
    check_trackers(args.report_to)
    repositories = repository_names(args, folders, sparsities)
    options = LoadOptions(**{name: getattr(args, name) for name in LOAD_OPTIONS})
    model_config = read_model_config(args.model, options)
    count = max(processes.local_count(), args.num_processes or 1)
    estimate = estimate_prune(model_config, config, options, sparsities, local_processes=count)
    problems = find_problems(
        config,
        models=[args.model],
        folders=folders,
        work_folder=work,
        disk=estimate.disk,
        overwrite=args.overwrite,
        resume=args.resume,
        files=front,
        repositories=[*filter(None, repositories)],
        token=args.token,
    )
    if args.plan:
        show_plan(estimate, folders[0], [*problems])
        return
    if processes.is_main():
        for problem in problems:
            raise problem
        for warning in estimate.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        begin_work(work, args.resume)
    offload = processes.from_main(estimate.offload)
    write_checkpoints(args, config, sparsities, folders, repositories, work, offload)


def write_checkpoints(
    args: Namespace,
    config: "FFPConfig",
    sparsities: list[float],
    folders: list[str],
    repositories: list[str | None],
    work: Path,
    offload: str,
) -> None:
    """Prunes and saves, after all checks have passed."""
    # Imported here: `--plan` doesn't need them.
    from ..checkpoint.pareto import ParetoFront
    from ..checkpoint.saving import SavedAgent, load_agent
    from ..errors import FFPError
    from ..hub.upload import push_folder
    from ..pruner import FFPPruner
    from ..utils import processes
    from .summary import prune_summary

    agent = load_agent(args.warm_start, args.token) if args.warm_start is not None else None
    options = {name: getattr(args, name) for name in LOAD_OPTIONS} | {"offload": offload}
    pruner = FFPPruner.from_pretrained(args.model, config, work, args.report_to, **options)
    front, failed, several = ParetoFront(), [], len(sparsities) > 1
    for sparsity, folder, repo_id in zip(sparsities, folders, repositories):
        result = pruner.prune(sparsity, agent, resume=True)
        front.add(result)
        if several:
            result.search.front = front.record
        if result.agent is not None:
            # The agent's state is the target sparsity, so that the next search needs half of the candidates.
            agent = SavedAgent(result.agent, folder)
            pruner.config.search_steps = max(1, config.search_steps // 2)
        pruner.save_pretrained(folder, args.overwrite, keep_work=folder != folders[-1])
        if not processes.is_main():
            continue
        print(prune_summary(result, folder))
        # A failed upload must not stop the remaining sparsities.
        try:
            if repo_id:
                print(f"uploaded: {push_folder(folder, repo_id, args.private, args.token)}")
        except FFPError as error:
            failed.append(str(error))
    if several and processes.is_main():
        print(f"Pareto front: {', '.join(map(str, front.write(f'{output_name(args)}-ffp-pareto')))}")
    if failed:
        raise FFPError("; ".join(failed))
