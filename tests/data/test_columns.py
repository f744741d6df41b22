import json
from dataclasses import replace

import datasets
import pytest
import torch

from optimum_ffp.data import DataRequest, load_windows, read_splits
from optimum_ffp.errors import FFPError
from tests.helpers import make_text, make_tiny_model, make_tokenizer


REQUEST = DataRequest(length=16, calibration=8, search=3, test=4, seed=0)
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
CHAT = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]


def write(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path, column=None):
    (rows,) = read_splits(path, replace(REQUEST, text_column=column)).values()
    return rows


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "a", "text": "w3", "messages": CHAT}, "w3"),
        ({"source": "site", "messages": CHAT}, CHAT),
        ({"conversations": [{"from": "human", "value": "w3"}, {"from": "gpt", "value": "w4"}]}, CHAT),
        ({"text": 7, "source": "site", "content": "w3"}, "w3"),
        ({"prompt": "w3 ", "completion": "w4", "text": "w5"}, "w5"),
        ({"prompt": "w3 ", "completion": "w4"}, ("w3 ", "w4")),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT),
    ],
)
def test_the_column_of_a_known_name_is_read(tmp_path, row, expected):
    assert read(write(tmp_path, row)) == [expected]


def test_a_column_can_be_named(tmp_path):
    path = write(tmp_path, {"text": "w3", "body": "w4", "chat": CHAT, "id": 7})
    assert read(path, "body") == ["w4"]
    assert read(path, "chat") == [CHAT]
    with pytest.raises(FFPError, match="has no column 'boddy'; its columns are text, body, chat, id"):
        read(path, "boddy")
    with pytest.raises(FFPError, match="column 'id' of .* holds neither texts nor conversations"):
        read(path, "id")


@pytest.mark.parametrize(
    "row", [{"id": "a"}, {"source": "site", "messages": []}, {"a": "x", "b": "y"}, {"prompt": "x"}]
)
def test_no_column_is_guessed(tmp_path, row):
    with pytest.raises(FFPError, match=f"has the columns {', '.join(row)}, and none .*--text-column NAME"):
        read(write(tmp_path, row))


def test_prompts_and_completions_are_one_text(tmp_path):
    words = make_text(900).split()
    halves = [(" ".join(words[at : at + 4]), " " + " ".join(words[at + 4 : at + 9])) for at in range(0, 900, 9)]
    rows = [{"id": 1, "prompt": prompt, "completion": completion} for prompt, completion in halves]
    texts = [{"text": prompt + completion} for prompt, completion in halves]
    expected = load(write(tmp_path, *texts), None).to_list()
    assert load(write(tmp_path, *rows, {"prompt": "w3"}), None).to_list() == expected
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    table = load(str(tmp_path / "data.parquet"), None)
    assert torch.equal(table.calibration.tokens, torch.tensor(expected[0]["tokens"]))
    with pytest.raises(FFPError, match="column 'prompt' and 'completion' of .* holds neither .* in row 2"):
        read(write(tmp_path, rows[0], {"prompt": "w3", "completion": CHAT}))


def load(path, template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return load_windows(path, None, tokenizer, make_tiny_model(), REQUEST)


def test_conversations_are_rendered_by_the_chat_template(tmp_path):
    words = make_text(900).split()
    chats = [{"messages": [{"role": "w3", "content": " ".join(words[at : at + 9])}]} for at in range(0, 900, 9)]
    texts = [{"text": f"w3 {chat['messages'][0]['content']} "} for chat in chats]
    rendered = load(write(tmp_path, *({"source": "w5"} | chat for chat in chats)), TEMPLATE)
    assert rendered.to_list() == load(write(tmp_path, *texts), None).to_list()


def test_conversations_that_can_not_be_rendered_end_in_one_line(tmp_path):
    path = write(tmp_path, {"messages": CHAT})
    with pytest.raises(FFPError, match="has no chat template.*--text-column NAME"):
        load(path, None)
    with pytest.raises(FFPError, match="the chat template refuses the conversation 'w3': .*roles must alternate"):
        load(path, "{{ raise_exception('roles must alternate') }}")
