"""Streaming gives the very text that decoding at once gives, in pieces that are always whole."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.text import StreamDecoder, Tokenizer

CORPUS = ["the cat sat on the mat", "größer als 語り部 и кот", "🙂🙃🙂 naïve 👩‍👩‍👧 語語語"] * 20
TEMPLATE = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<assistant>"
END = "<end>"


def _byte_level() -> Raw:
    """Like GPT-2: a token is any bytes, also a piece of one character and half the next."""
    raw = Raw(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return raw


def _byte_fallback() -> Raw:
    """Like Llama 2: words with a space in front, and single bytes for unknown characters."""
    pieces = ["▁", "▁the", "▁c", "at", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {END: 0, "<unk>": 1, **{f"<0x{byte:02X}>": byte + 2 for byte in range(256)}}
    vocab |= {piece: 258 + index for index, piece in enumerate(pieces)}
    raw = Raw(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return raw


def _saved(raw: Raw, directory: Path, template: str | None = None) -> Path:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=[_byte_level, _byte_fallback])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return Tokenizer(_saved(request.param(), tmp_path_factory.mktemp("tokenizer")))


def _stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in ids), stream.flush()]


@given(text=st.text(st.characters(codec="utf-8"), max_size=80))
def test_streamed_text_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = list(tokenizer.encode(text, raw=True))
    pieces = _stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("n_tokens", [1, 7, 200, 2000])
def test_any_bytes_stream_as_they_decode(n_tokens: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer(_saved(_byte_level(), tmp_path))
    draw = random.Random(n_tokens)
    ids = [draw.randrange(tokenizer.n_vocab) for _ in range(n_tokens)]
    assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦀", raw=True)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert len(ids) >= 2
    assert pieces[-1].endswith("🦀")
    assert "".join(pieces[:-1]).strip() == ""


def test_what_never_becomes_a_character_is_flushed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦀", raw=True)[:-1]
    stream = tokenizer.stream()
    assert "".join(stream.push(token) for token in ids).strip() == ""
    assert "\ufffd" in stream.flush()
    assert stream.flush() == ""


def test_a_push_decodes_a_few_tokens_however_long_the_text(tokenizer: Tokenizer) -> None:
    """Counted, not timed: also where no byte ever completes a character."""
    decoded: list[int] = []

    def counting(ids: list[int]) -> str:
        decoded.append(len(ids))
        return tokenizer.decode(ids)

    broken = [tokenizer.encode("🦀", raw=True)[-1]] * 1000
    text = list(tokenizer.encode("the cat" * 200, raw=True))
    stream = StreamDecoder(counting, frozenset())
    for token in broken + text + broken:
        stream.push(token)
    assert max(decoded) < 40
    assert len(decoded) < 3 * len(broken + text + broken)


def test_a_prompt_becomes_a_chat_only_if_the_model_has_one(tmp_path: Path) -> None:
    plain = Tokenizer(_saved(_byte_level(), tmp_path / "plain"))
    chat = Tokenizer(_saved(_byte_level(), tmp_path / "chat", TEMPLATE))
    assert chat.decode(list(chat.encode("the cat", raw=False))) == "<user>the cat<assistant>"
    assert chat.encode("the cat", raw=True) == plain.encode("the cat", raw=False)
    assert plain.encode("", raw=True) == ()


def test_stop_ids_are_those_of_all_files(tmp_path: Path) -> None:
    _saved(_byte_level(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5]}))
    assert Tokenizer(tmp_path).stop_ids == (0, 5, 7)


def test_stop_tokens_are_not_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("the cat", raw=True), *tokenizer.stop_ids]
    assert "".join(_stream(tokenizer, ids)) == "the cat"


def test_no_tokenizer_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no tokenizer"):
        Tokenizer(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    _saved(_byte_level(), tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.')
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


def test_a_chat_template_that_fails_is_the_models_fault(tmp_path: Path) -> None:
    template = "{{ raise_exception('no') }}"
    tokenizer = Tokenizer(_saved(_byte_level(), tmp_path / "broken", template))
    with pytest.raises(ModelError, match="chat template"):
        tokenizer.encode("hello", raw=False)
    assert tokenizer.encode("hello", raw=True)
