"""The options of `optimum-cli ffp prune`, in the groups of `--help`."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from ..config.fields import PAPER, PPO_STEPS, Options
from .arguments import (
    SEQ_LEN_DEFAULT,
    add_config_option,
    add_load_options,
    add_num_processes,
    add_option,
    add_output,
    add_overwrite,
    add_plan,
    add_report_to,
    add_text_column,
    add_training_hub_options,
    fraction,
)


DESCRIPTION = """Remove attention heads and FFN channels of a causal language model, a different number per layer,
and adapt the remaining weights. The result is a folder that transformers loads."""
EXAMPLES = """examples:
  optimum-cli ffp prune -m meta-llama/Llama-2-7b-hf --sparsity 0.2
  optimum-cli ffp prune -m Qwen/Qwen3-0.6B out --sparsity 0.2 0.3 --dataset my_text.jsonl
  optimum-cli ffp prune -m model.gguf out --dataset self --preset paper --search-steps 64
"""


def parse_args_ffp_prune(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp prune`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.usage = "optimum-cli ffp prune -m MODEL [OUT] [--sparsity X] [--dataset DATASET] [--push-to-hub] [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    add_option(required, "model", "-m", required=True, help="Dense model to prune: Hub id, folder or .gguf file.")

    common = parser.add_argument_group("Common options")
    add_output(common, "pruned", "MODEL-ffp-PERCENT")
    add_config_option(
        common,
        "sparsity",
        "Fraction of the parameters of attention and FFN to remove, between 0 and 1. Several values write one folder "
        "each, and a plot of size against perplexity.",
        type=fraction,
        nargs="+",
        metavar="X",
    )
    add_config_option(
        common,
        "dataset",
        "Text to prune with, ideally like the text the model is used on: wikitext2, c4, a Hub id, a "
        ".txt/.json/.jsonl/.parquet file (cut into train, validation and test), a folder with train, validation and "
        "test files, or self (text that the model generates, which is slow: lower --num-samples); or a mix of them "
        "with the share of each, such as wikitext2:0.5,c4:0.3,self:0.2.",
    )
    add_option(
        common,
        "push-to-hub",
        action="store_true",
        help="Upload the result to the Hub.",
    )

    output = parser.add_argument_group("Output")
    add_overwrite(output)
    add_option(
        output,
        "resume",
        action="store_true",
        help="Resume this command after it was interrupted. The result is the same as without the interruption.",
    )
    add_plan(output)

    data = parser.add_argument_group("Data")
    add_config_option(
        data,
        "eval-dataset",
        "Text to report perplexity on, or several separated by commas, same choices as --dataset.",
        "the test split of --dataset, of each text of a mix but self",
        metavar="DATASET",
    )
    add_text_column(data)
    add_config_option(data, "seq-len", "Tokens per window; all text is cut into windows.", SEQ_LEN_DEFAULT)
    add_config_option(
        data,
        "start-token",
        "Whether windows of text begin with a start token: auto (if the tokenizer adds one) or never.",
    )
    add_config_option(data, "num-samples", "Number of calibration windows, from the train split.")
    add_config_option(
        data, "search-samples", "Number of search windows, from the validation split, to compare candidates on."
    )
    add_config_option(
        data,
        "eval-samples",
        "Number of test windows of each text, from the test split.",
        "all of a test split, the first 100 of a text without one",
    )

    pruning = parser.add_argument_group("Pruning")
    add_config_option(
        pruning,
        "method",
        "How the number of heads and channels per layer is chosen: ffp (a search guided by the loss), no-search (from "
        "measurements of single layers), uniform (the same fraction in every layer), homogeneous (exactly the same "
        "number in every layer, so that the checkpoint needs no code of its own), or the baselines random and "
        "evolutionary.",
    )
    add_config_option(
        pruning,
        "preset",
        "Values of the options that are not given: default, or paper for those of the FastForward Pruning paper.",
    )
    add_option(
        pruning,
        "config",
        metavar="FILE",
        help="JSON file of options, such as the ffp_config.json of a pruned model. Options of the command line "
        "override it; --preset overrides every option that presets set. Default: none.",
    )
    add_config_option(
        pruning,
        "criterion",
        "How heads and channels are ranked within a layer: fisher-obs (backward elimination, weighted by the Fisher "
        "matrix), obs (backward elimination), flap or wanda.",
    )
    add_config_option(
        pruning,
        "attention",
        "What attention loses: kv-groups (a KV head with its query heads), query-heads (the same number of query "
        "heads of every KV head) or auto (for every layer whichever costs less by its loss curve). Models with one KV "
        "head, or one for each query head, are pruned in the one way that there is; OLMo's attention stays whole. "
        "With --method homogeneous the default is kv-groups.",
    )
    add_config_option(
        pruning,
        "fisher-samples",
        "Number of calibration windows for the backward pass that estimates the Fisher matrix.",
    )
    add_config_option(pruning, "min-retention", "Smallest fraction of heads, or of FFN channels, to keep in a layer.")
    add_config_option(pruning, "max-retention", "Largest fraction of heads, or of FFN channels, to keep in a layer.")
    add_config_option(pruning, "rate-precision", "Step that these fractions are rounded to.", "no rounding")
    add_config_option(
        pruning,
        "ffn-multiple",
        "Round FFN widths to multiples of this number of channels.",
        "256 or 32 (block sizes of llama.cpp) if the model is wide enough, otherwise 1",
    )
    add_config_option(pruning, "seed", "Random seed.")

    search = parser.add_argument_group("Search")
    add_config_option(
        search,
        "agent",
        "Search algorithm of --method ffp: gradient (follows the gradient of the loss) or ppo (the paper's).",
        "gradient, or ppo with --reward pruned",
    )
    add_config_option(
        search,
        "search-steps",
        "Number of candidates (pruned models) to evaluate; one with a backward pass counts as three.",
        f"{Options.search_steps}, {PPO_STEPS} with --agent ppo, or {PAPER['search_steps']} with --preset paper",
    )
    add_config_option(
        search,
        "candidates",
        "Number of candidates per update of --agent ppo, at once of --method random or evolutionary, or in "
        "all of --method homogeneous.",
    )
    add_config_option(
        search,
        "update-samples",
        "Number of search windows per update of the agent, or per candidate of random and evolutionary search.",
    )
    add_config_option(
        search,
        "reward",
        "When candidates are evaluated: pruned (before their weights are adapted) or compensated (after ridge "
        "regression).",
    )
    add_config_option(
        search,
        "mapping",
        "How the agent's score per layer becomes the size of the layer: curves (from the estimated loss of every "
        "size), greedy (Algorithm 1 of the paper) or water-filling.",
    )
    add_config_option(
        search,
        "search-dtype",
        "Dtype of matrix products in statistics, search and distillation of a float32 model: auto (bfloat16 where the "
        "hardware is known to be faster at it) or model (float32).",
    )
    add_option(
        search,
        "warm-start",
        metavar="MODEL",
        help="Start from the agent of another pruned model: folder, Hub id or ID@REVISION. Default: none.",
    )
    add_report_to(search, "the search")

    ppo = parser.add_argument_group("The paper's agent (with --agent ppo)")
    add_config_option(
        ppo, "alpha-start", "Fraction of the sparsity and of the search windows that the search starts with, 0 to 1."
    )
    add_config_option(ppo, "learning-rate", "Learning rate of PPO.")
    add_config_option(
        ppo,
        "action-std",
        "Standard deviation of the agent's actions before training; a warm start has that of its agent.",
    )
    add_config_option(ppo, "clip-range", "Clip range of PPO: limits the change of the agent per update.")
    add_config_option(ppo, "hidden-sizes", "Widths of the hidden layers of the agent's network.", metavar="N")

    calibration = parser.add_argument_group("Calibration")
    add_config_option(
        calibration,
        "calibration",
        "How the remaining weights are adapted: distillation (every layer is trained to give the output of the dense "
        "layer, and the last norm to give its predictions), ridge (every layer alone, by ridge regression) or none.",
    )
    add_config_option(calibration, "ridge-lambda", "Penalty λ of ridge regression.")
    add_config_option(
        calibration,
        "ridge-lambda-relative",
        "Whether λ is relative to the mean diagonal of the layer's Gram matrix, or absolute.",
    )
    add_config_option(
        calibration, "held-out-samples", "Number of search windows that the error of distillation is measured on."
    )
    add_config_option(
        calibration,
        "distillation-passes",
        "Number of passes of distillation over the calibration windows.",
    )
    add_config_option(
        calibration, "distillation-rate", "Learning rate of distillation, relative to the size of the weights."
    )
    add_config_option(
        calibration,
        "distillation-seq-len",
        "Tokens per window of distillation, that calibration windows are cut into: shorter ones give more steps.",
        "those of --seq-len",
    )
    add_config_option(
        calibration,
        "distillation-batch",
        "Number of windows per step of distillation, which that many processes share. Fewer steps may be worse.",
    )

    resources = parser.add_argument_group("Resources")
    add_load_options(resources)
    add_num_processes(resources)
    add_config_option(resources, "batch-size", "Windows per forward pass.")

    hub = parser.add_argument_group("The Hub")
    add_training_hub_options(hub, "; ID-10 and so on for several sparsities")
