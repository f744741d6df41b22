"""What somebody does who has never heard of optimum-ffp: loads saved folders with plain transformers, and checks them.

    python tests/standalone_checks.py FOLDER... [--logits FOLDER...]

Each folder holds a checkpoint and `expected.safetensors`: token ids and the logits that they must give. Prints one
JSON object: by folder, the checks that failed and why. Of folders after `--logits` that is the only check.
"""

import argparse
import json
import logging as standard_logging
import sys
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, pipeline
from transformers.utils import logging


sys.modules["optimum_ffp"] = None
logging.disable_progress_bar()
logging.set_verbosity_error()
TRUST = {"trust_remote_code": True}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}


def assert_logits_match(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises unless logits are the same but for float32's rounding."""
    error = float((found - expected).abs().max().detach())
    assert error < 2e-5 * max(1.0, float(expected.abs().max())), f"logits are off by {error:.2g}"


class Standalone:
    """The checks, one method each, on one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        expected = load_file(folder / "expected.safetensors")
        self.windows, self.logits, self.hidden = expected["windows"], expected["logits"], expected["hidden"]
        # Where all layers are alike there is none.
        self.has_code = any(folder.glob("*.py"))
        self.skips = '"skip"' in (folder / "config.json").read_text()

    @cached_property
    def model(self) -> PreTrainedModel:
        return self.load()

    def load(self, folder: Path | None = None, auto: type = AutoModelForCausalLM, **options) -> PreTrainedModel:
        return auto.from_pretrained(folder or self.folder, **TRUST, **options).eval()

    def check_logits(self) -> None:
        assert_logits_match(self.model(self.windows).logits, self.logits)

    def check_eager_attention(self) -> None:
        assert_logits_match(self.load(attn_implementation="eager")(self.windows).logits, self.logits)

    def check_attention_changed_after_loading(self) -> None:
        model = self.load()
        model.set_attn_implementation("eager")
        # In 4.57 it is `None` where a layer has none.
        attentions = [one for one in model(self.windows, output_attentions=True).attentions if one is not None]
        assert_logits_match(model(self.windows).logits, self.logits)
        differ = len({one.shape[1] for one in attentions}) > 1
        same = self.model.config.model_type.startswith("olmo") or not self.has_code
        assert self.skips or differ != same, "not the numbers of heads that pruning left"

    def check_padded_batch(self) -> None:
        ids = torch.nn.functional.pad(self.windows, (4, 0), value=1)
        mask = (torch.arange(ids.shape[1]) >= 4).long().expand_as(ids)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        options = {} if self.model.config.model_type == "opt" else {"position_ids": positions}
        assert_logits_match(self.model(ids, attention_mask=mask, **options).logits[:, 4:], self.logits)

    def check_generation(self) -> None:
        prompt = self.windows[:2, :6]
        # In 5.15 a cache without the keys of a layer fails where a candidate is refused.
        lookup = [] if self.skips else [{"prompt_lookup_num_tokens": 3}]
        for options in ({}, {"cache_implementation": "static"}, *lookup):
            rows = prompt[:1] if "prompt_lookup_num_tokens" in options else prompt
            expected = self.model.generate(rows, use_cache=False, **GREEDY)
            # The candidates of a lookup may go beyond the number of tokens that was asked for, in dense models too.
            found = self.model.generate(rows, **options, **GREEDY)[:, : expected.shape[1]]
            assert torch.equal(found, expected), f"{options} differs"

    def check_prefill_in_chunks_and_assisted_generation(self) -> None:
        prompt = self.windows[:1, :12]
        expected = self.model.generate(prompt, use_cache=False, **GREEDY)
        assert torch.equal(self.model.generate(prompt, prefill_chunk_size=4, **GREEDY), expected), "chunks differ"
        # In transformers 5.15 a cache with sliding windows fails where a candidate is refused, in dense models too.
        if not getattr(self.model.config, "sliding_window", None) and not self.skips:
            aided = self.model.generate(prompt, assistant_model=self.load(), **GREEDY)
            assert torch.equal(aided, expected), "aid differs"

    def check_offload(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            room = int(0.8 * sum(one.numel() for one in self.model.parameters()) * 4)
            model = self.load(device_map="auto", max_memory={"cpu": room}, offload_folder=scratch)
            assert "disk" in model.hf_device_map.values(), f"nothing was offloaded: {model.hf_device_map}"
            assert_logits_match(model(self.windows).logits, self.logits)

    def check_base_model(self) -> None:
        assert_logits_match(self.load(auto=AutoModel)(self.windows).last_hidden_state, self.hidden)

    def check_from_config(self) -> None:
        config = AutoConfig.from_pretrained(self.folder, **TRUST)
        for auto, loaded in ((AutoModel, self.model.base_model), (AutoModelForCausalLM, self.model)):
            built = auto.from_config(config, **TRUST)
            shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (built, loaded)]
            assert shapes[0] == shapes[1], f"{auto.__name__} builds other shapes"

    def check_saved_and_loaded_twice(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            self.model.save_pretrained(Path(scratch, "one"))
            once = self.load(Path(scratch, "one"))
            once.save_pretrained(Path(scratch, "two"))
            assert_logits_match(self.load(Path(scratch, "two"))(self.windows).logits, self.logits)

    def check_backward(self) -> None:
        gradients = []
        for checkpointing in (False, True):
            model = self.load().train()
            torch.manual_seed(0)
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(self.windows, labels=self.windows).loss.backward()
            assert all(one.grad is not None for one in model.parameters() if one.requires_grad), (
                "a gradient is missing"
            )
            gradients.append([one.grad for one in model.parameters()])
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*gradients)), "gradients differ"

    def check_tokenizer(self) -> None:
        if not (self.folder / "tokenizer.json").is_file():
            return
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        ids = tokenizer("w9 w10")["input_ids"]
        assert ids[-2:] == [9, 10], f"{type(tokenizer).__name__} gives {ids}"

    def check_pipeline_and_chat_template(self) -> None:
        if not (self.folder / "tokenizer.json").is_file():
            return
        tokenizer, messages = AutoTokenizer.from_pretrained(self.folder), [{"role": "user", "content": "w9"}]
        logger, logged = standard_logging.getLogger("transformers.pipelines.base"), []
        logger.addFilter(lambda record: logged.append(record.getMessage()) or True)
        generator = pipeline("text-generation", model=str(self.folder), tokenizer=tokenizer, **TRUST)
        assert not logged, f"the pipeline logs {logged[0][:80]}"
        (plain,) = generator("w5 w9 w6", max_new_tokens=3, do_sample=False, return_full_text=False)
        assert plain["generated_text"].strip(), "the pipeline gives no text"
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert text == "w5 w9 w6", f"the chat template gives {text!r}"
            (chat,) = generator(messages, max_new_tokens=3, do_sample=False)
            last = chat["generated_text"][-1]
            assert last == {"role": "assistant", "content": plain["generated_text"]}, f"a chat ends with {last}"

    def check_forgotten_trust(self) -> None:
        try:
            AutoModelForCausalLM.from_pretrained(self.folder, trust_remote_code=False)
        except (RuntimeError, ValueError):
            return
        if self.has_code:
            raise AssertionError("it loads without trust_remote_code")

    def failures(self, checks: Iterable[str]) -> dict[str, str]:
        failures = {}
        for name in checks:
            try:
                getattr(self, name)()
            except Exception as error:
                failures[name.removeprefix("check_")] = f"{type(error).__name__}: {error}"
        return failures


if __name__ == "__main__":
    torch.manual_seed(0)
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--logits", nargs="*", type=Path, default=[])
    args = parser.parse_args()
    checks = [name for name in dir(Standalone) if name.startswith("check_")]
    failures = {str(folder): Standalone(folder).failures(checks) for folder in args.folders}
    failures |= {str(folder): Standalone(folder).failures(["check_logits"]) for folder in args.logits}
    print(json.dumps(failures))
