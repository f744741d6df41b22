import torch

from optimum_ffp.data.samples import BEGINNINGS, NEW_TOKENS, QUESTIONS, supports_chat, write_samples
from tests.helpers import make_tiny_model, make_tokenizer


TEMPLATE = (
    "{% for message in messages %}w5 {{ message.content }} w6 {% endfor %}{% if add_generation_prompt %}w7{% endif %}"
)


def greedy(model, tokenizer, text: str) -> str:
    tokens = tokenizer(text, return_tensors="pt").input_ids
    prompt = tokens.shape[1]
    while tokens.shape[1] < prompt + NEW_TOKENS and tokens[0, -1] != tokenizer.eos_token_id:
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokenizer.decode(tokens[0, prompt:], skip_special_tokens=True).strip()


def test_samples_are_greedy_continuations():
    model, tokenizer = make_tiny_model("llama"), make_tokenizer()
    # Sampling is what many models are configured for.
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=7)
    samples = write_samples(model, tokenizer)
    assert samples == {text: greedy(model, tokenizer, text) for text in BEGINNINGS}


def test_chat_model_samples_answer_questions():
    model, tokenizer = make_tiny_model("llama"), make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    samples = write_samples(model, tokenizer)
    assert samples == {text: greedy(model, tokenizer, f"w5 {text} w6 w7") for text in QUESTIONS}


def test_failing_chat_template_means_no_chat_support():
    tokenizer = make_tokenizer()
    for template, expected in ((None, False), ("{{ raise_exception('no') }}", False), (TEMPLATE, True)):
        tokenizer.chat_template = template
        assert supports_chat(tokenizer) is expected
