"""Summaries of models, from their records alone."""

from optimum_ffp.commands.summary import summarize, sweep_table, warn_of_perplexity


DENSE = {
    "role": "dense",
    "model": "org/model",
    "dtype": "bfloat16",
    "parameters": 2_000_000,
    "weight_bytes": 2**22,
    "perplexity/c4": 40.0,
    "perplexity/wikitext2": 20.0,
}


def pruned(model: str, ratio: float, **changes: str) -> dict:
    record = DENSE | {"role": "pruned", "model": model, "parameters": 1_500_000, "weight_bytes": 3 * 2**20}
    record |= {"sparsity": 0.3, "model_sparsity": 0.25} | changes
    for text in ("c4", "wikitext2"):
        record |= {f"perplexity/{text}": ratio * DENSE[f"perplexity/{text}"], f"perplexity_ratio/{text}": ratio}
    return record


def test_summary_of_recovered_model():
    records = [pruned("better", 1.1, role="recovered"), pruned("out", 1.25), DENSE]
    _, size, weights, perplexity, place, step = summarize(records, "ffp recover").splitlines()
    assert "2,000,000 -> 1,500,000" in size and "30.0 %" in size and "25.0 % of the whole model" in size
    assert "4.0 -> 3.0 MiB" in weights
    assert "dense 40.00, pruned 50.00 (1.25x), recovered 44.00 (1.10x) on c4; dense 20.00" in perplexity
    assert "better" in place and step.endswith("ffp recover")


def test_summary_of_model_has_bits_per_byte_if_measured():
    records = [pruned("out", 1.25) | {"bits_per_byte/c4": 0.95, "bits_per_byte/wikitext2": 0.85}]
    records.append(DENSE | {"bits_per_byte/c4": 0.9123, "bits_per_byte/wikitext2": 0.8})
    (line,) = [line for line in summarize(records, "ffp recover").splitlines() if line.startswith("bits")]
    assert "dense 0.912, pruned 0.950 on c4; dense 0.800, pruned 0.850 on wikitext2" in line


def test_summary_compares_with_dense_size_not_teacher_size():
    teacher = DENSE | {"role": "teacher", "parameters": 7_000_000, "weight_bytes": 2**24}
    _, size, weights, *_ = summarize([pruned("better", 1.1, role="recovered"), teacher], "ffp push").splitlines()
    assert "2,000,000 -> 1,500,000" in size and "4.0 -> 3.0 MiB" in weights


def test_summary_of_mixture_lists_experts_and_calibration_stages():
    stages = {"none": (9.0, 0.5), "ridge": (8.0, 0.4)}
    figures = {f"held_out_perplexity/{stage}": perplexity for stage, (perplexity, _) in stages.items()}
    figures |= {f"held_out_divergence/{stage}": divergence for stage, (_, divergence) in stages.items()}
    record = pruned("better", 1.1, role="recovered", experts="6 of 8", calibration="ridge", **figures)
    _, size, _, experts, _, calibration, *_ = summarize([record, DENSE], "ffp push").splitlines()
    assert "6 of 8" in experts
    assert "none 9.00 (0.5000), ridge 8.00 (0.4000); kept: ridge" in calibration


def test_summary_shows_first_sample_of_each_model_on_one_line():
    texts = {"dense": "Paris.", "pruned": "the\ncity " * 50}
    records = [
        record | {"sample/Capital?": texts[record["role"]], "sample/Why?": "Because."}
        for record in (pruned("out", 1.1), DENSE)
    ]
    lines = summarize(records, "ffp recover").splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("sample")]
    prompt, dense, written = lines[start : start + 3]
    assert "Capital?" in prompt and dense.split() == ["-", "dense", "Paris."]
    assert "pruned" in written and "the city the city" in written and len(written) < 130
    assert not any("Because" in line for line in lines)


def test_sweep_summary_is_one_table():
    header, dense, *rows = sweep_table([pruned("a", 1.25), pruned("b", 1.5), DENSE]).strip().splitlines()
    assert "c4" in header and "wikitext2" in header and "20.00" in dense
    assert [row.split()[0] for row in rows] == ["a", "b"] and "25.00 (1.25x)" in rows[0]
    assert len({*map(len, (dense, *rows))}) == 1


def test_perplexity_ratio_of_1_5_or_more_is_warning(caplog):
    warn_of_perplexity([pruned("a", 1.49)])
    assert not caplog.messages
    warn_of_perplexity([pruned("a", 1.49), pruned("b", 1.5), pruned("c", 3)])
    (line,) = caplog.messages
    assert "b (1.50x on wikitext2)" in line and "c (3.00x on c4)" in line
    assert "a (" not in line and "remove less" in line


def test_perplexity_below_dense_is_warning(caplog):
    warn_of_perplexity([pruned("a", 1.0)])
    assert not caplog.messages
    warn_of_perplexity([pruned("a", 1.0), pruned("b", 0.91) | {"perplexity_ratio/c4": 1.2}])
    (line,) = caplog.messages
    assert "b on wikitext2" in line and "c4" not in line and "a on" not in line
    assert "ffp evaluate" in line
