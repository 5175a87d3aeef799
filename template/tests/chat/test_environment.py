"""Variables of the chat: what cannot be used is told in a sentence."""

import pytest

from tests.environment import SECRET, Table, assert_told, load_settings, rows
from tests.web.test_environment import WHOLE_NUMBER

NONSENSE: Table = {
    "CHAT_REPLIES_PER_HOUR": WHOLE_NUMBER,
    "DEFAULT_AI_MODEL": [
        ("gpt-5-mini", "but must be provider:model"),
        ("openai:", "but must be provider:model"),
        ("openai: gpt-5-mini", "but must be provider:model"),
        ("openai:gpt-5-mini # the small one", "A comment needs a line of its own."),
        ('"openai:gpt-5-mini"', "Write it without the quotes."),
    ],
    "OPENAI_API_KEY": [
        (f"{SECRET} # mine", "A comment needs a line of its own."),
        (f"{SECRET}…", "but must be one word of ASCII"),
    ],
    "OPENAI_BASE_URL": [
        ("127.0.0.1:11434/v1", "but must be a URL, which begins with a scheme such as https://"),
        ("ftp://127.0.0.1/v1", "whose scheme is not one of https, http"),
        ("http:///v1", "which names no host"),
        ("http://127.0.0.1:port/v1", "whose port is not a number"),
    ],
}


@pytest.mark.parametrize(("name", "value", "words"), rows(NONSENSE))
def test_a_value_that_cannot_be_used_is_told_in_a_sentence(tmp_path, name, value, words):
    assert_told(tmp_path, name, value, words)


@pytest.mark.parametrize("model", ["openai:gpt-5-mini", "bedrock:us.amazon.nova-lite-v1:0", "gateway/openai:gpt-5"])
def test_a_model_may_be_that_of_any_provider(tmp_path, model):
    assert load_settings(tmp_path, DEFAULT_AI_MODEL=model)["DEFAULT_AI_MODEL"] == model
