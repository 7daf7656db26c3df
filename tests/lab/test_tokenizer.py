"""The tokenizer: every text survives it, its folder loads in transformers, and the chat template says what it says."""

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lab import export, tokenizer
from octavo.evals.tasks import WORDS


@given(text=st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_survives_a_round_trip(small_tokenizer, text):
    ids = small_tokenizer.encode(text).ids
    if not any(special in text for special in tokenizer.SPECIAL):
        assert small_tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["\x00\x7f", "é\u0301", "🧑‍🔬👩🏽‍🚀", "\ud7ff\ue000\U0010ffff", "  \t\r\n x", "日本語"]
)
def test_hard_texts_survive_a_round_trip(small_tokenizer, text):
    assert small_tokenizer.decode(small_tokenizer.encode(text).ids) == text


def test_digits_stand_alone(small_tokenizer):
    assert small_tokenizer.encode("20480").tokens == list("20480")


def test_task_words_are_one_token_each(small_tokenizer):
    assert all(len(small_tokenizer.encode(" " + word).ids) == 1 for word in WORDS)


def test_special_tokens_have_their_ids(small_tokenizer):
    assert small_tokenizer.get_vocab_size() == tokenizer.VOCAB_TOKENS
    named = (tokenizer.PAD_ID, tokenizer.BOS_ID, tokenizer.EOS_ID, tokenizer.SYSTEM_ID)
    named += (tokenizer.USER_ID, tokenizer.ASSISTANT_ID, tokenizer.END_ID)
    assert [small_tokenizer.token_to_id(text) for text in tokenizer.SPECIAL] == list(named)


def test_training_again_gives_the_same_tokenizer(small_tokenizer, few_sources):
    again = tokenizer.train(export.tokenizer_texts(few_sources, seed=1))
    assert again.to_str() == small_tokenizer.to_str()


@pytest.fixture(scope="module")
def loaded(small_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(small_tokenizer, folder, 2048)
    return AutoTokenizer.from_pretrained(folder)


def test_transformers_loads_the_folder(loaded, small_tokenizer):
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 6)
    text = "def f(x):\n    return x ** 2  # é"
    assert loaded.encode(text, add_special_tokens=False) == small_tokenizer.encode(text).ids
    assert loaded.encode(text) == [tokenizer.BOS_ID, *small_tokenizer.encode(text).ids]


def test_the_template_frames_turns_as_training_does(loaded, batches):
    asked = [{"role": "user", "content": "What does len do?"}]
    prompt = loaded.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|user|>What does len do?<|end|><|assistant|>"
    whole = [*asked, {"role": "assistant", "content": "Return."}]
    ids = loaded.encode(loaded.apply_chat_template(whole, tokenize=False), add_special_tokens=False)
    assert ids == batches.turn("What does len do?", "Return.")[0]


def test_the_template_refuses_other_roles(loaded):
    with pytest.raises(
        jinja2.exceptions.TemplateError, match="roles are system, user and assistant; got tool"
    ):
        loaded.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
