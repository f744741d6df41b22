import pytest
import torch

from optimum_ffp.utils.lm_head import chunked_logits, decode


def test_chunked_logits_equal_model_logits(tiny_model, windows, monkeypatch):
    expected = tiny_model(windows).logits
    monkeypatch.setattr("optimum_ffp.utils.lm_head.POSITIONS", 7)
    pieces = list(chunked_logits(tiny_model, decode(tiny_model, windows)))
    assert [start for start, _ in pieces] == [0, 7, 14, 21]
    assert torch.allclose(torch.cat([logits for _, logits in pieces], 1), expected, atol=1e-5)
    assert torch.equal(tiny_model(windows).logits, expected)


def test_lm_head_is_cast_once_under_autocast_and_restored(tiny_model, windows):
    head = tiny_model.get_output_embeddings()
    before = head.weight.clone()
    with torch.autocast("cpu", torch.bfloat16):
        expected, decoded = tiny_model(windows).logits, decode(tiny_model, windows)
        pieces = chunked_logits(tiny_model, decoded)
        start, logits = next(pieces)
        assert head.weight.dtype == torch.bfloat16 and start == 0
        assert torch.equal(logits, expected[:, : logits.shape[1]])
        pieces.close()
    assert torch.equal(head.weight, before)


def test_decoder_is_restored_after_lm_head_error(tiny_model, windows, monkeypatch):
    decoded, decoder = decode(tiny_model, windows), tiny_model.get_decoder()

    def wrapped(*inputs, **options):
        return type(decoder).forward(decoder, *inputs, **options)

    decoder.forward = wrapped
    monkeypatch.setattr(tiny_model.get_output_embeddings(), "forward", lambda hidden: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(chunked_logits(tiny_model, decoded))
    assert decoder.forward is wrapped
