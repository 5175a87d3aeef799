"""The model that chats ask: the one that DEFAULT_AI_MODEL names, or an echo. Nothing else knows pydantic-ai.

https://ai.pydantic.dev/
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from django.conf import settings
from django.utils.text import Truncator

if TYPE_CHECKING:
    from pydantic_ai import Agent, ModelMessage, ModelResponse

NAME_INSTRUCTIONS = (
    "Give the conversation that begins with this message a name of two to five words, in its language. "
    "Answer with the name alone."
)
NAME_CHARACTERS = 60
DETAIL_CHARACTERS = 1000
ECHO = """**No model answers here yet**, so this is an echo. Name one in `DEFAULT_AI_MODEL` to talk to it.

You said:

> {}
"""
ECHO_SECONDS = 0.04


class Turn(NamedTuple):
    """One message of a conversation, as the model gets it."""

    is_reply: bool
    text: str


class ModelFailed(Exception):
    """The model did not answer. The message is a sentence for the person who asked, `detail` is one for staff."""

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail[:DETAIL_CHARACTERS]


class CutShort(ModelFailed):
    """The answer ended before it was complete. What it has said so far is worth keeping."""


async def answer(turns: Sequence[Turn]) -> AsyncIterator[str]:
    """Yield the answer to the last turn, piece by piece. Raises ModelFailed."""
    pieces = _answer_of_model(turns) if settings.DEFAULT_AI_MODEL else _echo(turns[-1].text)
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece


async def name_for(question: str) -> str:
    """Return a name for the chat that begins with the question. Raises ModelFailed."""
    if not settings.DEFAULT_AI_MODEL:
        return first_words(question)
    with _failures_told():
        agent = await asyncio.to_thread(_build_agent, NAME_INSTRUCTIONS)
        async with agent:
            result = await agent.run(question)
    return Truncator(" ".join(result.output.split()).strip("\"'*#. ")).chars(NAME_CHARACTERS) or first_words(question)


def first_words(question: str) -> str:
    """Return the beginning of the question, as a name that needs no model."""
    return Truncator(Truncator(" ".join(question.split())).words(6)).chars(NAME_CHARACTERS)


async def _echo(text: str) -> AsyncIterator[str]:
    for word in ECHO.format(text.replace("\n", "\n> ")).split(" "):
        await asyncio.sleep(ECHO_SECONDS)
        yield f"{word} "


async def _answer_of_model(turns: Sequence[Turn]) -> AsyncIterator[str]:
    with _failures_told():
        agent = await asyncio.to_thread(_build_agent, settings.CHAT_INSTRUCTIONS)
        async with agent, agent.run_stream(turns[-1].text, message_history=_history(turns[:-1])) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                yield piece
            _check_complete(result.response)


def _check_complete(response: "ModelResponse") -> None:
    """Raise CutShort unless the model itself ended its response."""
    reason = response.finish_reason
    if reason == "length":
        raise CutShort("The reply has reached the greatest length that is allowed here.")
    if reason == "content_filter":
        raise CutShort("The model's provider cut off the reply, because it does not allow the rest.")
    # In place of a reason that OpenAI's API did not send, pydantic-ai reports "stop". The details show what was sent.
    details = response.provider_details or {"finish_reason": reason}
    if reason == "error" or not details.get("finish_reason"):
        raise CutShort("The model's provider ended the reply before it was complete.")


def _build_agent(instructions: str) -> "Agent":
    """Return a new agent, because a kept one would hold connections of an event loop that has ended.

    The first call is slow, because it imports the package and the provider's client.
    """
    from pydantic_ai import Agent

    model_settings = {"timeout": settings.CHAT_REPLY_SECONDS, "max_tokens": settings.CHAT_REPLY_TOKENS}
    return Agent(settings.DEFAULT_AI_MODEL, instructions=instructions, model_settings=model_settings)


def _history(turns: Sequence[Turn]) -> "list[ModelMessage]":
    from pydantic_ai import ModelRequest, ModelResponse, TextPart, UserPromptPart

    return [
        ModelResponse(parts=[TextPart(turn.text)]) if turn.is_reply else ModelRequest(parts=[UserPromptPart(turn.text)])
        for turn in turns
    ]


@contextmanager
def _failures_told() -> Iterator[None]:
    """Turn the errors of pydantic-ai into ModelFailed. The log shows them as its cause."""
    try:
        yield
    except ModelFailed:
        raise
    except ImportError as error:
        sentence = "The model cannot be asked: a package that it needs is not installed."
        raise ModelFailed(sentence, str(error)) from error
    except Exception as error:
        if sentence := _sentence_for(error):
            raise ModelFailed(sentence, error.message) from error
        raise


def _sentence_for(error: Exception) -> str:
    """Return what the person who asked can do, or who else can. Empty if the error is not one of pydantic-ai's."""
    from pydantic_ai import exceptions

    # An error may be of several kinds. The first one that fits counts.
    sentences = {
        exceptions.UserError: "The model cannot be asked: it is not configured as it should be.",
        exceptions.ModelAuthenticationError: "The model cannot be asked: its provider does not accept the key.",
        exceptions.ModelNotFoundError: "The model cannot be asked: its provider does not know it.",
        exceptions.ModelQuotaExceededError: "The model cannot be asked: its provider's quota is used up.",
        exceptions.ModelContextWindowExceededError: "The conversation is too long for the model. Start a new chat.",
        exceptions.ModelRequestRejectedError: "The model's provider refused the question.",
        exceptions.ModelRateLimitError: "The model is asked too much at the moment. Try again a little later.",
        exceptions.ModelConnectionError: "The connection to the model failed. Try again a little later.",
        exceptions.ContentFilterError: "The model's provider does not allow a reply to this. Ask in other words.",
        exceptions.OutputTokenLimitExceeded: (
            "The model used up its limit by thinking, before it wrote a word. Ask something simpler."
        ),
        exceptions.AgentRunError: "The model did not answer. Try again.",
    }
    return next((sentence for kind, sentence in sentences.items() if isinstance(error, kind)), "")
