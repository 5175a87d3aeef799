"""The model is asked over the network by its provider's client, and every way to fail has a sentence."""

import pytest

pytest.importorskip("celery")

from asgiref.sync import async_to_sync

from apps.chat import ai

CONVERSATION = [ai.Turn(False, "Hello"), ai.Turn(True, "Hello!"), ai.Turn(False, "Are trains long?")]


@async_to_sync
async def answer(into=None):
    """Return the pieces of the answer. If it fails, those before the failure are in the list that was given."""
    pieces = [] if into is None else into
    async for piece in ai.answer(CONVERSATION):
        pieces.append(piece)
    return pieces


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


REFUSALS = [
    (401, {"code": "invalid_api_key"}, "does not accept the key"),
    (403, {}, "does not accept the key"),
    (404, {"code": "model_not_found"}, "does not know it"),
    (402, {}, "quota is used up"),
    (429, {"code": "insufficient_quota"}, "quota is used up"),
    (429, {}, "asked too much"),
    (400, {"code": "context_length_exceeded"}, "Start a new chat"),
    (400, {}, "refused the question"),
    (500, {}, "did not answer"),
]


@pytest.mark.parametrize(("status", "error", "sentence"), REFUSALS)
def test_a_refusal_is_told_to_the_person_and_its_own_words_to_staff(model, status, error, sentence):
    model.status, model.error = status, {"message": "Words of the provider."} | error
    with pytest.raises(ai.ModelFailed, match=sentence) as failed:
        answer()
    assert "Words of the provider." in failed.value.detail


ENDS = [("length", "greatest length"), ("content_filter", "does not allow the rest"), (None, "before it was complete")]


@pytest.mark.parametrize(("reason", "sentence"), ENDS)
def test_an_answer_that_is_cut_short_is_told_after_its_words(model, reason, sentence):
    model.reason = reason
    said = []
    with pytest.raises(ai.CutShort, match=sentence):
        answer(into=said)
    assert said == model.words


def test_a_reason_that_nobody_knows_is_an_end(model):
    model.reason = "eos"
    assert answer() == model.words


@pytest.mark.parametrize(("reason", "sentence"), [("length", "by thinking"), ("content_filter", "does not allow")])
def test_an_end_before_the_first_word_is_told(model, reason, sentence):
    model.words, model.reason = [], reason
    with pytest.raises(ai.ModelFailed, match=sentence) as failed:
        answer()
    assert not isinstance(failed.value, ai.CutShort) and model.replies_begun == 1


def test_a_connection_that_breaks_off_is_told_after_the_words(model):
    model.breaks_off = True
    said = []
    with pytest.raises(ai.ModelFailed, match="connection to the model failed"):
        answer(into=said)
    assert said == model.words


def test_a_model_that_is_away_is_told(model):
    model.shutdown()
    model.server_close()
    with pytest.raises(ai.ModelFailed, match="connection to the model failed"):
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
