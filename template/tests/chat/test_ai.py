"""The model is asked over the network by its provider's client, and every way to fail has a sentence."""

import pytest

pytest.importorskip("celery")

from asgiref.sync import async_to_sync

from apps.chat import ai

CONVERSATION = [ai.Turn(False, "Hello"), ai.Turn(True, "Hello!"), ai.Turn(False, "Are trains long?")]


@async_to_sync
async def answer(turns=CONVERSATION):
    return [piece async for piece in ai.answer(turns)]


def test_without_a_model_the_answer_says_so_and_echoes_word_by_word():
    pieces = answer()
    assert len(pieces) > 10
    assert "No model answers here yet" in "".join(pieces) and "> Are trains long?" in "".join(pieces)


def test_the_answer_comes_piece_by_piece(model):
    assert answer() == model.words


def test_the_model_gets_instructions_the_conversation_and_a_limit(model, settings):
    answer()
    [asked] = model.requests
    assert [(message["role"], message["content"]) for message in asked["messages"]] == [
        ("system", settings.CHAT_INSTRUCTIONS),
        ("user", "Hello"),
        ("assistant", "Hello!"),
        ("user", "Are trains long?"),
    ]
    assert asked["model"] == "trains"
    assert settings.CHAT_REPLY_TOKENS in (asked.get("max_tokens"), asked.get("max_completion_tokens"))


def test_one_answer_after_another_needs_no_common_event_loop(model):
    assert answer() == answer() == model.words


@pytest.mark.parametrize(("status", "sentence"), [(429, "asked too much"), (400, "did not answer")])
def test_a_refusal_is_told(model, status, sentence):
    model.status = status
    with pytest.raises(ai.ModelFailed, match=sentence):
        answer()


def test_a_model_that_is_away_is_told(model):
    model.shutdown()
    model.server_close()
    with pytest.raises(ai.ModelFailed, match="did not answer"):
        answer()


@pytest.mark.parametrize("name", ["no-such-provider:x", "x"])
def test_a_model_that_does_not_exist_is_told(settings, name):
    settings.DEFAULT_AI_MODEL = name
    with pytest.raises(ai.ModelFailed, match="not configured as it should be"):
        answer()


def test_a_missing_key_is_told(model, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ai.ModelFailed, match="not configured as it should be"):
        answer()


def test_a_missing_client_is_told(model, monkeypatch):
    def build(instructions):
        raise ImportError("Please install `another` to use this model")

    monkeypatch.setattr(ai, "_build_agent", build)
    with pytest.raises(ai.ModelFailed, match="not installed"):
        answer()


def test_a_name_is_one_line_without_quotes(model):
    model.name = '**"Trains\nof Europe."**'
    assert async_to_sync(ai.name_for)("Are trains long?") == "Trains of Europe"


def test_without_a_model_the_first_words_are_the_name():
    assert (
        async_to_sync(ai.name_for)("Are trains\nlonger than most of the planes?") == "Are trains longer than most of…"
    )
