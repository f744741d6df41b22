"""The closing table of a prune."""

from ..result import PruningResult


def summary(result: PruningResult, folder: str) -> str:
    """Parameters, sparsity, perplexities, time of every stage, and the lines that load the model."""
    policy, test, search = result.policy, result.test, result.search
    seconds, peaks = result.cost.seconds, result.cost.peak_bytes
    total = sum(seconds.values())
    rows = [
        ("parameters", f"{result.dense_parameters:,} -> {result.parameters:,}"),
        ("sparsity of the blocks", f"{policy.sparsity:.4%} (asked: {result.config.sparsity:.4%})"),
        ("sparsity of the model", f"{result.model_sparsity:.4%}"),
        *((f"perplexity, {name}", f"{value:.4f}") for name, value in result.perplexities.items()),
        ("measured on", f"{test.dataset}, {test.split}, {len(test)} windows of {test.length} tokens"),
        ("search", f"{search['candidate_evaluations']} candidates, {search['tokens_evaluated']:,} tokens"),
        *((f"time, {name}", f"{value:.1f} s ({value / total:.0%})") for name, value in seconds.items()),
        ("peak memory", f"{max(peaks.values()) / 2**30:.2f} GiB, in {max(peaks, key=peaks.get)}"),
        ("saved in", folder),
    ]
    width = max(len(name) for name, _ in rows)
    lines = ["", *(f"{name:<{width}}  {value}" for name, value in rows), "", "Load it with"]
    lines += [
        "    from transformers import AutoModelForCausalLM",
        f'    model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)',
    ]
    return "\n".join(lines)
