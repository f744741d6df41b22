"""Scores a pruned model on tasks of lm-eval, with the Python API of lm-eval.

pip install -e ".[eval]"
python examples/evaluate_with_lm_eval.py PRUNED [--tasks boolq piqa] [--tasks-path FOLDER] [--limit 200]

`optimum-cli ffp evaluate` includes this; the example shows that lm-eval can use a pruned model like any other model.
On the command line: `lm_eval --model hf --model_args pretrained=PRUNED,trust_remote_code=True`.
"""

import argparse

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table
from transformers import AutoTokenizer

from optimum_ffp import FFPModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a pruned model.")
    parser.add_argument("--tasks", nargs="+", default=["boolq", "piqa", "arc_easy"])
    parser.add_argument("--tasks-path", help="Folder of .yaml tasks, whose data may be local.")
    parser.add_argument("--limit", type=int, help="Samples per task. Default: all.")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()

    model = FFPModelForCausalLM.from_pretrained(args.model, device_map="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size),
        tasks=args.tasks,
        task_manager=TaskManager(include_path=args.tasks_path, include_defaults=args.tasks_path is None),
        limit=args.limit,
        log_samples=False,
    )
    print(make_table(results))


if __name__ == "__main__":
    main()
