"""A dozen short Python functions that dense and pruned models complete, side by side.

    python benchmarks/completions.py MODEL ... [options]

**Runs programs that a model wrote**: as the current user, in a process of their own (`python -I`) with a time limit,
no environment variables and an empty temporary folder, but with access to all files and the network.

A prompt is the signature of a function and its docstring, as plain text without a chat template. The completion is
greedy and ends with the function, which passes if the checks after it hold. The table says which functions pass; the
JSON has the completions too. Of twelve easy functions two or three more or less may be chance: this shows whether a
pruned model still writes code that runs, not which of two models writes better code.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tables import markdown
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.hub.naming import short_name
from optimum_ffp.modeling.loading import LoadOptions, load_any
from optimum_ffp.utils.json import write_json
from optimum_ffp.utils.precision import dtype_name


# Signature, docstring and what must hold.
FUNCTIONS = (
    (
        "is_prime(n: int) -> bool",
        "Return whether n is a prime number.",
        "[n for n in range(30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]",
    ),
    (
        "gcd(a: int, b: int) -> int",
        "Return the greatest common divisor of two positive integers.",
        "(gcd(12, 18), gcd(18, 12), gcd(7, 5), gcd(6, 6)) == (6, 6, 1, 6)",
    ),
    (
        "fibonacci(n: int) -> int",
        "Return the n-th Fibonacci number, where fibonacci(0) is 0 and fibonacci(1) is 1.",
        "[fibonacci(n) for n in range(10)] == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]",
    ),
    (
        "is_palindrome(text: str) -> bool",
        "Return whether a text reads the same backwards. Ignore case, spaces and punctuation.",
        "is_palindrome('A man, a plan, a canal: Panama') and not is_palindrome('Python')",
    ),
    (
        "count_words(text: str) -> dict[str, int]",
        "Return how often each word of a text occurs. Words are separated by whitespace.",
        "count_words('to be or  not\\nto be') == {'to': 2, 'be': 2, 'or': 1, 'not': 1}",
    ),
    (
        "flatten(items: list) -> list",
        "Return a flat list of all elements of a list that may contain lists, nested to any depth.",
        "flatten([1, [2, [3, []], 4], [[[5]]]]) == [1, 2, 3, 4, 5]",
    ),
    (
        "merge(a: list[int], b: list[int]) -> list[int]",
        "Merge two sorted lists into one sorted list.",
        "merge([1, 4, 4], [2, 4, 9]) == [1, 2, 4, 4, 4, 9] and merge([], [1]) == [1]",
    ),
    (
        "binary_search(items: list[int], target: int) -> int",
        "Return the index of target in a sorted list, or -1 if it is not there.",
        "[binary_search([1, 3, 5, 8], n) for n in (1, 3, 8, 4, 9)] == [0, 1, 3, -1, -1]",
    ),
    (
        "run_lengths(text: str) -> list[tuple[str, int]]",
        "Return each run of equal characters as the character and its length: 'aab' gives [('a', 2), ('b', 1)].",
        "run_lengths('aabccca') == [('a', 2), ('b', 1), ('c', 3), ('a', 1)] and run_lengths('') == []",
    ),
    (
        "to_roman(n: int) -> str",
        "Convert an integer from 1 to 3999 to a Roman numeral.",
        "[to_roman(n) for n in (4, 9, 1994, 3888)] == ['IV', 'IX', 'MCMXCIV', 'MMMDCCCLXXXVIII']",
    ),
    (
        "is_balanced(text: str) -> bool",
        "Return whether all brackets (), [] and {} of a text are closed in the right order.",
        "[is_balanced(text) for text in ('a(b[c]{})', '(]', '([)]', '((', '')] == [True, False, False, False, True]",
    ),
    (
        "transpose(matrix: list[list[int]]) -> list[list[int]]",
        "Return the transpose of a matrix, which is given as a list of rows.",
        "[list(row) for row in transpose([[1, 2, 3], [4, 5, 6]])] == [[1, 4], [2, 5], [3, 6]]",
    ),
)
# A line after the function.
END = re.compile(r"\n(?=\S)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="Hub ids, folders or .gguf files.")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--timeout", type=float, default=10, help="Seconds that a program may run.")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto", help="Dtype to load the models in. Default: the checkpoint's.")
    parser.add_argument("--output", type=Path, default=Path("completions.json"))
    args = parser.parse_args()

    records = []
    for name in args.models:
        model, tokenizer = load_any(name, LoadOptions(device=args.device, dtype=args.dtype))
        functions = {}
        for signature, docstring, condition in FUNCTIONS:
            prompt = f'def {signature}:\n    """{docstring}"""\n'
            written = complete(model, tokenizer, prompt, args.max_new_tokens)
            passed = runs(f"{prompt}{written}\n\nassert {condition}\n", args.timeout)
            functions[signature.partition("(")[0]] = {"passed": passed, "completion": written}
        dtype = dtype_name(model.dtype)
        records.append({"model": short_name(name), "dtype": dtype, "functions": functions})
        write_json(args.output, records)
    print(table(records))


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> str:
    """The rest of a function, up to the first line that isn't indented."""
    begin = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)

    def decode(tokens: torch.Tensor) -> str:
        return tokenizer.decode(tokens[0, begin.shape[1] :], skip_special_tokens=True)

    def has_ended(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.tensor([bool(END.search(decode(tokens)))], device=tokens.device)

    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": 0}
    stop = {"max_new_tokens": max_new_tokens, "stopping_criteria": [has_ended]}
    return END.split(decode(model.generate(begin, attention_mask=torch.ones_like(begin), **greedy, **stop)))[0]


def runs(program: str, timeout: float) -> bool:
    """Whether a program ends in time and without an error."""
    with TemporaryDirectory() as folder:
        process = {"cwd": folder, "env": {}, "timeout": timeout}
        silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        try:
            return not subprocess.run([sys.executable, "-I", "-c", program], **process, **silent).returncode
        except subprocess.TimeoutExpired:
            return False


def table(records: list[dict]) -> str:
    """Functions that pass, by model."""
    functions = [record["functions"] for record in records]
    rows = [[f"`{name}`", *("passes" if one[name]["passed"] else "" for one in functions)] for name in functions[0]]
    counts = [str(sum(function["passed"] for function in one.values())) for one in functions]
    return markdown(["", *(record["model"] for record in records)], [*rows, [f"**of {len(FUNCTIONS)}**", *counts]])


if __name__ == "__main__":
    with one_line_errors():
        main()
