"""The AI chat of a running project: replies grow before one's eyes, stop when told to, and are paid for once.

Both ways are proved with a real worker and a real server, against a model that counts how often it is asked: by a task
and polling under gunicorn, with processes and with threads, and by server-sent events under uvicorn.
"""

import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.browser import PATIENCE_SECONDS, Browser, free_port
from tests.chromium import chromium_page, has_sideways_scrolling, sign_in
from tests.dev_support import left_in, wait_until
from tests.processes import Program, installed, load_module, redis_server, run, sqlite, started

pytestmark = pytest.mark.run

EMAIL, PASSWORD = "ada@example.com", "a-long-word-7"
LONG = "Are trains in general longer than the planes that fly above them?"
WORDS = [f"word{number} " for number in range(30)]
# So many words does a model say that is to be caught in the middle.
SOME, MORE = 4, 10
# Stops the second reply of a page at the moment a word of it is seen: no person is quicker.
STOP_ON_SIGHT = """
word => new MutationObserver((_, observer) => {
  const reply = document.querySelectorAll(".reply")[1];
  if (!reply?.innerText.includes(word)) return;
  observer.disconnect();
  reply.querySelector("[id^=stop]").click();
}).observe(document.body, { childList: true, subtree: true })
"""
SERVERS = {
    False: ("gunicorn", "acme.wsgi", "--threads=4", "--bind=127.0.0.1:{port}"),
    True: ("uvicorn", "acme.asgi:application", "--host=127.0.0.1", "--port={port}", "--timeout-graceful-shutdown=1"),
}


# Thirty people, each with a reply that is written elsewhere and shows signs of life for an hour.
PEOPLE = 30
READERS = """
from datetime import timedelta
from django.test import Client
from django.utils import timezone
from apps.chat.models import Chat, Message
from apps.users.models import User
for number in range(%s):
    user = User.objects.create_user(f"reader{number}@example.com")
    client = Client()
    client.force_login(user)
    reply = Chat.objects.create(owner=user).messages.create(
        role="reply", state="writing", text="Some", updated_at=timezone.now() + timedelta(hours=1)
    )
    print("reader", reply.pk, client.cookies["sessionid"].value)
"""


class Words:
    """What the model says, word by word, and never more words than it may say at the moment."""

    may_say = len(WORDS)

    def __iter__(self) -> Iterator[str]:
        for number, word in enumerate(WORDS):
            wait_until(lambda number=number: number < self.may_say)
            yield word


class Running(NamedTuple):
    """A running project: a person's browser on it, its model and its words, whether it streams, and where its logs are.

    `server_id` is the process of the web server. `kill_writer` kills the processes that write replies, and brings
    others in. `end_server` tells the web server to end, as a deployment does; `start_another_server` waits until it
    has.
    """

    browser: Browser
    model: Any
    words: Words
    streams: bool
    folder: Path
    server_id: Callable[[], int]
    kill_writer: Callable[[], None]
    end_server: Callable[[], None]
    start_another_server: Callable[[], None]

    def ask(self, text: str) -> str:
        """Start a chat with the text; return the number of its reply."""
        assert self.browser.get("/chats/")[0] == 200
        status, page = self.browser.post("/chats/", text=text)
        assert status == 200, page
        return re.search(r'id="reply-(\d+)"', page)[1]

    @property
    def chat(self) -> str:
        """The path of the chat that was opened last."""
        return urllib.parse.urlsplit(self.browser.address).path

    def stream(self, reply: str) -> Iterator[str]:
        """The events of a reply; the connection drops when the iterator is closed."""
        address = f"{self.browser.site}/chats/replies/{reply}/stream/"
        with self.browser.opener.open(address, timeout=PATIENCE_SECONDS) as lines:
            event = ""
            for line in lines:
                event += line.decode()
                if line == b"\n":
                    yield event
                    event = ""

    def looks(self, reply: str, until: Callable[[str], Any]) -> list[str]:
        """What a page shows of the reply one after the other, up to what is looked for, or the end."""
        seen: list[str] = []
        if self.streams:
            for event in self.stream(reply):
                seen.append(event)
                if until(event):
                    break
            return seen

        def look() -> bool:
            seen.append(self.browser.get(f"/chats/replies/{reply}/")[1])
            return bool(until(seen[-1])) or "aria-busy" not in seen[-1]

        assert wait_until(look), seen[-1]
        return seen

    def begins(self, text: str) -> tuple[str, str]:
        """Start a chat whose reply stays in the middle until all may be said; return the reply, and the chat's path.

        Somebody has seen its words by then.
        """
        self.words.may_say = SOME
        reply = self.ask(text)
        chat = self.chat
        assert has_some(self.looks(reply, until=has_some)[-1])
        return reply, chat

    def goes_on(self) -> None:
        """Let the model say all."""
        self.words.may_say = len(WORDS)

    def ends(self, reply: str) -> str:
        """Wait for the end of a reply; return what the page shows of it then."""
        self.goes_on()
        return self.looks(reply, until=lambda look: False)[-1]


@contextmanager
def running(project: Path, programs: Path, streams: bool, pool: str) -> Iterator[Running]:
    """Run model, broker, a worker with this pool and the web server of a project, with somebody signed in."""
    port, folder = free_port(), project.parent
    with (
        load_module("tests/chat/model_server.py").model_server() as model,
        redis_server(folder) as (_, url),
        ExitStack() as stack,
    ):
        model.words = words = Words()
        variables = {"CELERY_BROKER_URL": url, "DEBUG": "1", "DEFAULT_AI_MODEL": "openai-chat:trains"}
        variables |= model.environment
        run(project, programs / "python", "manage.py", "migrate", **variables)
        # The first import of the client compiles it, which can take longer than a test waits.
        run(project, programs / "python", "-c", "import pydantic_ai.models.openai")
        browser = Browser(f"http://127.0.0.1:{port}")

        at_work: dict[str, Program] = {}

        def start_worker() -> None:
            command = (programs / "celery", "-A", "acme", "worker", "-l", "info", "--concurrency=2", "-P", pool)
            worker = stack.enter_context(started(project, folder / "worker.log", *command, **variables))
            worker.says("ready")
            at_work["worker"] = worker

        def start_server() -> None:
            name, *arguments = SERVERS[streams]
            command = (programs / name, *(argument.format(port=port) for argument in arguments))
            server = stack.enter_context(started(project, folder / "web.log", *command, **variables))
            assert wait_until(lambda: answers(browser)), server.text
            at_work["server"] = server

        def end_server() -> None:
            at_work["server"].process.terminate()

        def start_another_server() -> None:
            at_work["server"].process.wait(PATIENCE_SECONDS)
            start_server()

        def server_id() -> int:
            return at_work["server"].process.pid

        def kill_writer() -> None:
            program, start_another = (at_work["server"], start_server) if streams else (at_work["worker"], start_worker)
            # A pool of processes brings new ones in by itself.
            if children := psutil.Process(program.process.pid).children(recursive=True):
                for child in children:
                    child.kill()
            else:
                program.process.kill()
                program.process.wait()
                start_another()

        start_worker()
        start_server()
        browser.get("/accounts/signup/")
        assert browser.post("/accounts/signup/", email=EMAIL, password1=PASSWORD)[0] == 200
        yield Running(browser, model, words, streams, folder, server_id, kill_writer, end_server, start_another_server)


def answers(browser: Browser) -> bool:
    try:
        return browser.get("/up")[0] == 200
    except OSError:
        return False


@pytest.fixture(
    scope="module",
    params=["polling-threads", "streaming-prefork", pytest.param("polling-prefork", marks=pytest.mark.slow)],
)
def site(request, template_repo, tmp_path_factory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("chat")
    way, pool = request.param.split("-")
    streams = way == "streaming"
    project, programs = installed(template_repo, folder, "3.13", use_ai_chat=True, use_async=streams)
    with running(project, programs, streams, pool) as running_site:
        yield running_site
    assert not left_in(folder)


@pytest.fixture(autouse=True)
def nothing_is_held(site) -> Iterator[None]:
    """Whatever a test leaves, the model may say all in the next."""
    yield
    site.goes_on()


@pytest.fixture
def asked(site) -> Callable[[], int]:
    """How many replies the model was asked for since the test began."""
    before = site.model.replies_begun
    return lambda: site.model.replies_begun - before


def words_in(text: str) -> int:
    return len(set(re.findall(r"word\d+", text)))


def has_some(text: str) -> bool:
    return words_in(text) == SOME


def test_a_reply_grows_to_its_end_and_its_chat_is_named_by_the_task(site, asked):
    site.words.may_say = 5
    reply = site.ask(LONG)
    chat = site.chat

    def say_more(look: str) -> None:
        # Once all is shown that was said.
        if words_in(look) == site.words.may_say:
            site.words.may_say += 5

    counts = [words_in(look) for look in site.looks(reply, until=say_more)]
    assert len(set(counts)) > 5 and counts == sorted(counts) and counts[-1] == len(WORDS)
    assert wait_until(lambda: ">Trains of Europe</h1>" in site.browser.get(chat)[1])
    assert asked() == 1


def test_a_reply_stops_in_the_middle_and_can_be_asked_for_again(site, asked):
    reply, chat = site.begins("Stop me")
    status, page = site.browser.post(f"/chats/replies/{reply}/stop/")
    assert status == 200 and has_some(page) and "Try again" in page
    assert site.browser.post(f"/chats/replies/{reply}/retry/")[0] == 200
    site.ends(reply)
    assert words_in(site.browser.get(chat)[1]) == len(WORDS)
    assert asked() == 2


def test_a_chat_writes_one_reply_at_a_time(site, asked):
    reply, chat = site.begins("One")
    status, page = site.browser.post(chat, text="Two")
    assert status == 422 and "still being answered" in page
    site.ends(reply)
    assert asked() == 1
    status, page = site.browser.post(chat, text="Two")
    assert status == 200
    # To its end, or the next test would see it asked for.
    site.ends(re.findall(r'id="reply-(\d+)"', page)[-1])


def test_a_chat_that_is_deleted_in_the_middle_ends_quietly(site):
    _, chat = site.begins(LONG)
    assert site.browser.post(f"{chat}delete/")[0] == 200
    assert site.browser.get(chat)[0] == 404
    # The next reply is written by those who were at work on this one.
    site.ends(site.ask("Go on"))
    logs = [(site.folder / name).read_text() for name in ("worker.log", "web.log")]
    assert not [log for log in logs if "Traceback" in log]


def test_a_reply_goes_on_when_its_page_is_loaded_again(site, asked):
    reply, _ = site.begins("Reload me")
    # Under ASGI the first connection has dropped by now.
    assert has_some(site.looks(reply, until=has_some)[-1])
    assert words_in(site.ends(reply)) == len(WORDS)
    assert asked() == 1


@pytest.mark.parametrize("site", ["streaming-prefork"], indirect=True)
def test_what_was_seen_stays_when_the_web_server_ends_in_the_middle(site):
    site.words.may_say, seen = SOME, 0
    reply = site.ask(LONG)
    chat = site.chat
    # The connection breaks: the model says more than the server waits for.
    with suppress(OSError, HTTPException):
        for event in site.stream(reply):
            if words_in(event) >= SOME > seen:
                site.end_server()
            seen = max(seen, words_in(event))
            site.words.may_say = seen + 1
    site.start_another_server()
    assert words_in(site.browser.get(chat)[1]) >= seen >= SOME
    # Nobody writes it any more.
    assert site.browser.post(f"/chats/replies/{reply}/stop/")[0] == 200


@pytest.mark.parametrize("site", ["streaming-prefork"], indirect=True)
def test_300_readers_are_served_and_hold_no_connection_to_the_database(site):
    project = site.folder / "acme"
    printed = run(project, project / ".venv/bin/python", "manage.py", "shell", "-c", READERS % PEOPLE, DEBUG="1")
    people = re.findall(r"reader (\d+) (\w+)", printed)
    address = urllib.parse.urlsplit(site.browser.site)
    with ExitStack() as stack:
        readers = []
        for reply, session in 10 * people:
            reader = socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS)
            readers.append(stack.enter_context(reader))
            path = f"/chats/replies/{reply}/stream/"
            reader.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: sessionid={session}\r\n\r\n".encode())
        assert len(readers) == 300
        assert all(read_until(reader, b"event: text") for reader in readers)
        held = [each for each in psutil.Process(site.server_id()).open_files() if each.path.endswith("db.sqlite3")]
        # SQLite closes a file of its own only when nobody else in the process reads it.
        assert len(held) < 100
        assert site.browser.get("/chats/")[0] == 200
        sqlite(project, "UPDATE chat_message SET state = 'done' WHERE text = 'Some'")
        assert all(read_until(reader, b"event: end") for reader in readers)


def read_until(reader: socket.socket, word: bytes) -> bool:
    """Read what the server sends up to a word; return whether it has come before the end."""
    text = b""
    while word not in text and (more := reader.recv(65536)):
        text += more
    return word in text


def test_a_reply_whose_writer_is_killed_says_so_and_can_be_asked_for_again(site, asked):
    reply, chat = site.begins("Kill me")
    site.kill_writer()
    assert wait_until(lambda: "What wrote the reply has died" in site.browser.get(chat)[1])
    page = site.browser.get(chat)[1]
    assert has_some(page) and "Try again" in page and asked() == 1
    assert site.browser.post(f"/chats/replies/{reply}/retry/")[0] == 200
    assert words_in(site.ends(reply)) == len(WORDS)
    assert asked() == 2


@pytest.mark.parametrize("width, colours", [(1280, "light"), (360, "dark")])
def test_the_text_grows_before_ones_eyes_survives_a_reload_and_stops(site, asked, width, colours):
    with chromium_page(viewport={"width": width, "height": 800}, color_scheme=colours) as page:
        sign_in(page, site.browser.site, EMAIL, PASSWORD, "/chats/")
        site.words.may_say = SOME
        page.get_by_role("textbox").fill(LONG)
        page.get_by_role("button", name="Send").click()
        reply = page.get_by_role("article", name="Reply")
        reply.get_by_text(WORDS[SOME - 1]).wait_for()
        assert words_in(reply.inner_text()) == SOME
        site.words.may_say = MORE
        reply.get_by_text(WORDS[MORE - 1]).wait_for()
        assert words_in(reply.inner_text()) == MORE
        page.reload()
        reply.get_by_text(WORDS[MORE - 1]).wait_for()
        site.goes_on()
        reply.get_by_text(WORDS[-1]).wait_for()
        assert words_in(reply.inner_text()) == len(WORDS) and asked() == 1
        assert not has_sideways_scrolling(page)

        site.words.may_say = SOME
        page.evaluate(STOP_ON_SIGHT, WORDS[SOME - 1].strip())
        page.get_by_role("textbox").fill("And again")
        page.get_by_role("button", name="Send").click()
        last = page.get_by_role("article", name="Reply").nth(1)
        last.get_by_role("button", name="Try again").wait_for()
        assert words_in(last.inner_text()) == SOME
        page.reload()
        last.get_by_role("button", name="Try again").wait_for()
        assert words_in(last.inner_text()) == SOME


@pytest.mark.parametrize("site", ["streaming-prefork"], indirect=True)
def test_a_question_that_is_sent_three_times_is_asked_once_and_a_refused_stream_is_opened_again(site, asked):
    with chromium_page() as page:
        sign_in(page, site.browser.site, EMAIL, PASSWORD, "/chats/")
        # So do servers that are just being replaced answer; with an error the page would complain.
        page.route("**/stream/", lambda route: route.fulfill(status=204), times=1)
        page.get_by_role("textbox").fill("Pressed three times")
        for _ in range(3):
            page.keyboard.press("Enter")
        page.get_by_role("article", name="Reply").get_by_text(WORDS[-1]).wait_for()
        assert asked() == 1
        assert page.get_by_role("link", name="Pressed three times").count() == 1
