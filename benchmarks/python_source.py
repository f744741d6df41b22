"""Writes a corpus of Python source: the standard library of the Python that runs this script.

    python benchmarks/python_source.py OUT

`OUT` is a folder for `--dataset`: `train.jsonl`, `validation.jsonl` and `test.jsonl` with a file of the library per
row. The hash of its path decides on the split of a file and its place there, so that a version of Python always gives
the same corpus. A tenth of the files is for validation, a tenth for test. Tests, tables (encodings, topics of pydoc,
settings of the build) and installed packages are left out.

Models of code have read the library before, all three splits of it. Held-out files show how well a pruned model does
on source that it was not calibrated on, but not on source that is new to the dense model.
"""

import argparse
import json
import re
import sysconfig
from hashlib import sha256
from pathlib import Path

from optimum_ffp.commands.errors import one_line_errors


LEFT_OUT = re.compile(r"(idle_)?tests?|(site|dist)-packages|encodings|pydoc_data|_sysconfigdata.*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    args.out.mkdir(parents=True)
    print("| split | files | characters |\n|---|---:|---:|")
    for split, texts in read_library(Path(sysconfig.get_path("stdlib"))).items():
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (args.out / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
        print(f"| {split} | {len(texts):,} | {sum(map(len, texts)):,} |")


def read_library(library: Path) -> dict[str, list[str]]:
    """The source files of a folder by split, in the order of the hash of their path."""
    files = {}
    for path in library.rglob("*.py"):
        name = path.relative_to(library)
        if not any(map(LEFT_OUT.fullmatch, name.parts)):
            files[sha256(name.as_posix().encode()).hexdigest()] = path
    splits = {"train": [], "validation": [], "test": []}
    for digest, path in sorted(files.items()):
        tenth = int(digest[-8:], 16) % 10
        split = {0: "validation", 1: "test"}.get(tenth, "train")
        splits[split].append(path.read_text(encoding="utf-8"))
    return splits


if __name__ == "__main__":
    with one_line_errors():
        main()
