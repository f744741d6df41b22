import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants

from optimum_ffp import FFPError
from optimum_ffp.config.texts import TextMix
from optimum_ffp.data import DataRequest, answers, load_windows, training_windows
from tests.helpers import make_tiny_model, make_tokenizer


CHAT = (
    "{% for message in messages %}{{ {'user': 'w10', 'assistant': 'w11', 'system': 'w12'}[message.role] }} "
    "{{ message.content | trim }} </s> {% endfor %}{% if add_generation_prompt %}w11 {% endif %}"
)
PROMPTS = [f"w{20 + number} w{30 + number}" for number in range(20)]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(answers, "MAX_ANSWER", 6)
    monkeypatch.setattr(answers, "PROMPTS_AT_ONCE", 2)


def write_prompts(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"self:{path}"


def request_of(dataset, **windows):
    texts = TextMix.parse(dataset)
    return DataRequest(texts, texts.reported, length=8, test=1, seed=0, **windows)


def read_answers(tmp_path):
    (file,) = (tmp_path / "home" / "optimum_ffp").iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def greedy_answer(model, tokenizer, text):
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    length = tokens.shape[1]
    for _ in range(6):
        token = model(tokens).logits[0, -1].argmax()
        if token == tokenizer.eos_token_id:
            break
        tokens = torch.cat([tokens, token[None, None]], 1)
    return tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


def test_answers_are_what_the_model_generates_after_each_prompt(tmp_path):
    model, tokenizer = make_tiny_model(), make_tokenizer()
    tokenizer.chat_template = CHAT
    # What another model has answered is dropped.
    system, answer = {"role": "system", "content": "w50"}, {"role": "assistant", "content": "w60"}
    rows = [{"messages": [system, {"role": "user", "content": prompt}, answer]} for prompt in PROMPTS]
    load_windows(tokenizer, model, request_of(write_prompts(tmp_path / "p.jsonl", rows), calibration=4))
    written = read_answers(tmp_path)
    for row in written:
        assert row["prompt"] in [one["messages"][:2] for one in rows]
        text = f"w12 w50 </s> w10 {row['prompt'][1]['content']} </s> w11"
        assert row["completion"] == [{"role": "assistant", "content": greedy_answer(model, tokenizer, text)}]
    # Not more of them than the windows need.
    assert 0 < len(written) < len(rows)


def test_prompts_of_roles_are_disjoint_and_answers_are_reused(tmp_path, monkeypatch):
    model, tokenizer = make_tiny_model(), make_tokenizer()
    dataset = write_prompts(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    request = request_of(dataset, calibration=4, search=1, held_out=1)
    data = load_windows(tokenizer, model, request)
    tokens, passes = training_windows(tokenizer, model, request, 30)
    prompts = [tokenizer(prompt).input_ids[0] for prompt in PROMPTS]
    found = [{*windows.flatten().tolist()} & {*prompts} for windows in (tokens, data.search.tokens, data.test.tokens)]
    # The tiny model rarely writes the first tokens of prompts itself.
    assert found[0] >= {*prompts[0::5]} and passes[dataset] > 1
    assert data.test.split == "test part of p.jsonl" and len(data.test) == 1
    monkeypatch.setattr(answers, "generate", None)
    again = load_windows(tokenizer, model, request)
    assert torch.equal(again.calibration.tokens, data.calibration.tokens)
    assert [row["prompt"] for row in read_answers(tmp_path)][:2] == PROMPTS[:2]


def test_answers_file_is_a_text(tmp_path):
    model, tokenizer = make_tiny_model(), make_tokenizer()
    tokenizer.chat_template = CHAT
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    request = request_of(f"self:{tmp_path / 'p.txt'}", calibration=4)
    load_windows(tokenizer, model, request)
    (file,) = (tmp_path / "home" / "optimum_ffp").iterdir()
    texts = TextMix.parse(str(file))
    test = load_windows(tokenizer, model, replace(request, texts=texts, reported=texts, test=3)).test
    # Both a user's and an assistant's turn.
    assert {10, 11} <= {*test.tokens.flatten().tolist()}


def test_text_without_prompts_is_rejected(tmp_path):
    dataset = write_prompts(tmp_path / "p.jsonl", [{"answer": "w3"}])
    with pytest.raises(FFPError, match="question"):
        load_windows(make_tokenizer(), make_tiny_model(), request_of(dataset, calibration=4))
