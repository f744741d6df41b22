"""`optimum-cli ffp export`."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ..config.fields import Config, option
from .arguments import add_shared, describe, load_options
from .launching import Command


EXAMPLES = """examples:
  optimum-cli ffp export -m SmolLM2-135M-ffp-20 SmolLM2-135M-ffp-20.gguf --outtype q8_0
  optimum-cli ffp export -m my-org/Qwen3-8B-ffp-20 model.gguf --pad-uniform
"""


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Options of `ffp export`."""

    outtype: str = option(
        "f16", "Type of the weight matrices.", "GGUF", choices=("f32", "f16", "bf16", "q8_0", "q4_0")
    )
    pad_uniform: bool = option(
        False,
        "Whether to zero-pad every layer to the size of the largest. The file is larger but runs wherever the dense "
        "model does.",
        "GGUF",
    )


class FFPExportCommand(Command):
    """Export a dense or pruned model to GGUF for llama.cpp."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        describe(parser, "optimum-cli ffp export -m MODEL OUT [options]", FFPExportCommand.__doc__, EXAMPLES)
        group = parser.add_argument_group("Model and output")
        group.add_argument("-m", "--model", required=True, help="Dense or pruned model to export: Hub id or folder.")
        group.add_argument("output", metavar="OUT", help="GGUF file to write.")
        add_shared(group, "--overwrite", help="Replace an existing GGUF file; other files are never replaced.")
        add_shared(group, "--revision", "--trust-remote-code")
        Options.add_arguments(parser)

    @staticmethod
    def execute(args: Namespace) -> None:
        """Load a model and write it as a GGUF file."""
        config = Options.from_args(args)

        from ..export import export_gguf, plan_export
        from ..modeling.gguf_file import check_gguf_installed
        from ..modeling.loading import LoadOptions, empty_model, load_any, load_tokenizer, read_any_config
        from ..utils.folders import check_file, check_output_is_not_input

        check_output_is_not_input(args.output, [args.model])
        output = check_file(args.output, b"GGUF", args.overwrite)
        options = LoadOptions(device="cpu", **load_options(args))
        check_gguf_installed()
        # Check before loading the weights.
        empty = empty_model(read_any_config(args.model, options))
        plan_export(empty, load_tokenizer(args.model, options), config.pad_uniform)
        model, tokenizer = load_any(args.model, options)
        architecture = export_gguf(model, tokenizer, output, config.outtype, config.pad_uniform)
        size = output.stat().st_size / 2**20
        print(f"{args.output}: {size:,.1f} MiB, {config.outtype}, architecture {architecture.name}")
