"""`optimum-cli ffp quantize`."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from importlib.util import find_spec

from ..config.fields import Config, option
from ..errors import FFPError
from .arguments import add_shared, describe, load_options
from .launching import Command


EXAMPLES = """examples:
  optimum-cli ffp quantize -m out out-w8 --scheme w8a8
  optimum-cli ffp quantize -m out-recovered out-w4 --scheme w4a16 --dataset chats.jsonl --dtype bfloat16
"""


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Options of `ffp quantize`."""

    dataset: str | None = option(
        None,
        "Text to quantize with GPTQ on, as for ffp prune. Without one, weights are rounded to the nearest value.",
        "Quantization",
    )
    num_samples: int = option(
        128, "Number of windows for GPTQ, with as many tokens as those of the prune.", "Quantization", low=1
    )


class FFPQuantizeCommand(Command):
    """Quantize a pruned model to compressed-tensors, for vLLM and transformers."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        describe(parser, "optimum-cli ffp quantize -m MODEL OUT [options]", FFPQuantizeCommand.__doc__, EXAMPLES)
        group = parser.add_argument_group("Model and output")
        group.add_argument("-m", "--model", required=True, help="Pruned model to quantize: Hub id or folder.")
        group.add_argument("output", metavar="OUT", help="Folder to write.")
        add_shared(group, "--overwrite", "--revision", "--trust-remote-code")
        quantization = Options.add_arguments(parser)["Quantization"]
        quantization.add_argument(
            "--scheme",
            required=True,
            choices=("w8a8", "w4a16"),
            help="w8a8 (weights and activations in 8 bits) or w4a16 (weights in 4 bits, with a scale per 128, 64 or "
            "32 inputs). Required.",
        )
        add_shared(quantization, "--dtype", help="Dtype of everything that isn't quantized, or auto. Default: auto.")

    @staticmethod
    def execute(args: Namespace) -> None:
        """Check, load, quantize and save."""
        config = Options.from_args(args)

        from ..checkpoint.quantized import find_group_size, save_quantized
        from ..checkpoint.recovered import source_folder
        from ..config.texts import TextMix, mark_local_paths
        from ..data import DataRequest, load_windows, window_length
        from ..hub.record import require_record
        from ..modeling.loading import LoadOptions, empty_model, load_any, read_pruned_config
        from ..utils.folders import check_output, check_output_is_not_input

        check_output_is_not_input(args.output, [args.model])
        check_output(args.output, args.overwrite)
        # llm-compressor brings one layer after another to the accelerator.
        options = LoadOptions(device="cpu", **load_options(args))
        size = find_group_size(empty_model(read_pruned_config(args.model, options)), args.scheme)
        if find_spec("llmcompressor") is None:
            raise FFPError("quantizing needs llm-compressor: pip install llmcompressor")
        model, tokenizer = load_any(args.model, options)
        windows = None
        if config.dataset:
            record = require_record(args.model, **options.hub())
            request = DataRequest(
                texts=TextMix.parse(mark_local_paths(config.dataset)),
                reported=TextMix(()),
                length=window_length(record.window_length, model.config),
                test=None,
                seed=0,
                calibration=config.num_samples,
                text_column=record.options["text_column"] if config.dataset == record.options["dataset"] else None,
                start_token=record.start_token,
            )
            windows = load_windows(tokenizer, model, request).calibration
        source = source_folder(args.model, options.hub())
        path = save_quantized(model, source, args.output, args.scheme, size, windows, overwrite=args.overwrite)
        weights = sum(file.stat().st_size for file in path.glob("*.safetensors")) / 2**20
        print(f"{args.output}: {weights:,.1f} MiB, {args.scheme}{f' in groups of {size}' if size else ''}")
