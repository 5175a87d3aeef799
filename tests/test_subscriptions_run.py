"""Seats reach Stripe through a real broker and a real worker: once, in spite of errors, and right after a race.

Of two answers the later one counts, whichever comes first. And without Celery a team is joined in a browser, and its
payment arrives by a signed event. The Stripe is the project's own fake, which speaks HTTP to the real SDK inside the
project's processes.
"""

import hashlib
import hmac
import json
import quopri
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.browser import PATIENCE_SECONDS, free_port
from tests.chromium import chromium_page, has_sideways_scrolling, sign_in
from tests.dev_support import left_in, wait_until
from tests.processes import (
    Program,
    add_gevent,
    installed,
    load_module,
    needed,
    postgresql_server,
    redis_server,
    run,
    sqlite,
    started,
)

pytestmark = pytest.mark.run

PASSWORD = "correct horse battery"
OWNER, JANE = "owner@example.com", "jane@example.com"
# A team whose owner pays for one seat.
BEGIN = f"""
from apps.subscriptions.billing import refetch
from apps.subscriptions.models import Plan
from apps.teams.models import create_team
from apps.users.models import User
Plan.objects.create(name="Orbit", price_id="price_1")
team = create_team("Rockets", User.objects.create_user("{OWNER}", "{PASSWORD}"))
assert team.pk == 1 and refetch("sub_1").quantity == 1
"""
JOIN = """
from django.db import transaction
from apps.teams.models import Membership
from apps.users.models import User
def join(number):
    Membership.objects.create(team_id=1, user=User.objects.create(email=f"{number}@example.com"))
"""
TWENTY_AT_ONCE = f"{JOIN}\nwith transaction.atomic():\n    for number in range(20): join(number)\n"
ONE_AFTER_THE_OTHER = f"{JOIN}\nfor number in range(%s, %s): join(number)\n"
WITHOUT_A_SIGNAL = f"""{JOIN}
from apps.subscriptions.seats import sync_all
Membership.objects.bulk_create([Membership(team_id=1, user=User.objects.create(email="bulk@example.com"))])
sync_all.call()
"""
SECOND_TEAM = """
from apps.teams.models import create_team
from apps.users.models import User
assert create_team("Zeppelins", User.objects.first()).pk == 2
"""
REFETCH_SECOND = """
from apps.subscriptions.billing import refetch
print("It is", refetch("sub_2").status)
"""
READ_SECOND = """
from apps.subscriptions.models import Subscription
print("It is", Subscription.objects.get(team_id=2).status)
"""
ADD_USERS = f"""
from apps.users.models import User
for email in ("{OWNER}", "{JANE}"):
    User.objects.create_user(email, "{PASSWORD}")
"""


class Running(NamedTuple):
    """A project at work: its Stripe, functions that run Python and its site in it, its folder, and its PostgreSQL."""

    stripe: Any
    shell: Any
    site: Any
    project: Path
    database: str | None

    def quantity(self) -> int:
        """How many seats the project believes that Stripe knows."""
        query = "SELECT quantity FROM subscriptions_subscription WHERE team_id = 1"
        if self.database:
            return int(run(self.project, needed("psql"), self.database, "-tAc", query))
        [(quantity,)] = sqlite(self.project, query)
        return quantity

    def told(self) -> list[int]:
        """The quantities that Stripe was told, in their order."""
        return [int(call.form["quantity"]) for call in self.stripe.calls if "quantity" in call.form]

    def is_at(self, seats: int) -> bool:
        """Wait until Stripe and the project agree on the number of seats; return whether it came to that."""
        item = self.stripe.objects["/v1/subscription_items/si_1"]
        return wait_until(lambda: item["quantity"] == self.quantity() == seats)

    def is_idle(self) -> bool:
        """Wait until Stripe hears nothing any more for two seconds."""

        def silent() -> bool:
            heard = len(self.stripe.calls)
            time.sleep(2)
            return heard == len(self.stripe.calls)

        return wait_until(silent)


@pytest.fixture(
    scope="module", params=["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("threads", "gevent"))]
)
def at_work(
    request: pytest.FixtureRequest, template_repo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A project with per-unit subscriptions, with a worker of four slots, on SQLite or on PostgreSQL.

    Not gevent on SQLite, which waits for its lock without letting the greenlet run that holds it.
    """
    folder = tmp_path_factory.mktemp(f"subscriptions_{request.param}")
    project, programs = installed(template_repo, folder, "3.13", subscriptions="per_unit", use_flower=False)
    add_gevent(project, programs)
    with ExitStack() as stack:
        database = None if request.param == "prefork" else stack.enter_context(postgresql_server())
        _, broker = stack.enter_context(redis_server(folder))
        stripe = stack.enter_context(load_module("tests/subscriptions/fake_stripe.py").FakeStripe())
        variables = {
            "CELERY_BROKER_URL": broker,
            "DATABASE_URL": database or "",
            "DEBUG": "1",
            "STRIPE_API_URL": stripe.url,
            "STRIPE_SECRET_KEY": "sk_test_1",
        }
        run(project, programs / "python", "manage.py", "migrate", **variables)
        stripe.subscribe(1)
        shell = partial(run, project, programs / "python", "manage.py", "shell", "-c", **variables)
        shell(BEGIN)
        worker = (programs / "celery", "-A", "acme", "worker", "-l", "info", "-c", "4", "-P", request.param)
        with started(project, folder / "worker.log", *worker, **variables) as program:
            program.says("ready")
            yield Running(stripe, shell, partial(serving, project, programs, folder, **variables), project, database)
    assert not left_in(folder)


@contextmanager
def serving(project: Path, programs: Path, folder: Path, **variables: str) -> Iterator[tuple[str, Program]]:
    """Run the web server of a project; yields its address and the program, which prints e-mails."""
    port = str(free_port())
    command = (programs / "python", "manage.py", "runserver", "--noreload", port)
    with started(project, folder / "web.log", *command, PYTHONUNBUFFERED="1", **variables) as web:
        web.says("Quit the server")
        yield f"http://127.0.0.1:{port}", web


@pytest.fixture
def acme(at_work: Running) -> Iterator[Running]:
    """The project at work, whose Stripe has forgotten what it was told."""
    at_work.stripe.calls.clear()
    at_work.stripe.failures.clear()
    at_work.stripe.delay_seconds = 0.0
    yield at_work
    print(json.dumps(at_work.told()))


def test_twenty_seats_in_one_transaction_are_one_call(acme):
    seats = acme.quantity() + 20
    acme.shell(TWENTY_AT_ONCE)
    assert acme.is_at(seats) and acme.is_idle()
    assert acme.told() == [seats]


def test_two_refusals_for_too_many_requests_are_recovered(acme):
    seats = acme.quantity() + 1
    acme.stripe.failures.extend([429, 429])
    acme.shell(ONE_AFTER_THE_OTHER % (20, 21))
    assert acme.is_at(seats)
    assert acme.told() == [seats] * 3


def test_a_race_between_seats_and_a_slow_stripe_ends_right(acme):
    seats = acme.quantity() + 6
    acme.stripe.delay_seconds = 0.5
    acme.shell(ONE_AFTER_THE_OTHER % (21, 27))
    assert acme.is_at(seats) and acme.is_idle()
    assert acme.told() == sorted(acme.told())


def test_seats_without_a_signal_are_found_by_the_schedule(acme):
    seats = acme.quantity() + 1
    acme.shell(WITHOUT_A_SIGNAL)
    assert acme.is_at(seats)
    assert acme.told() == [seats]


def test_an_answer_that_was_overtaken_does_not_count(acme, monkeypatch):
    acme.shell(SECOND_TEAM)
    acme.stripe.subscribe(2, number=2, status="incomplete")
    answer, is_held, overtaken = acme.stripe.answer, threading.Event(), threading.Event()

    def hold(call: Any) -> Any:
        found = answer(call)
        # Whose subscription it is was the first question; the second answer is the one that is written down.
        if len(acme.stripe.calls) == 2:
            is_held.set()
            # The other process waits for this one, or would have ended by then.
            overtaken.wait(8)
        return found

    with ThreadPoolExecutor() as pool, monkeypatch.context() as patch:
        patch.setattr(acme.stripe, "answer", hold)
        slow = pool.submit(acme.shell, REFETCH_SECOND)
        assert is_held.wait(PATIENCE_SECONDS)
        patch.undo()
        acme.stripe.subscribe(2, number=2)
        fast = acme.shell(REFETCH_SECOND)
        overtaken.set()
        assert "It is active" in fast
        assert "It is incomplete" in slow.result()
    assert "It is active" in acme.shell(READ_SECOND)


def test_an_owner_sees_the_paid_seats_follow_the_members(acme):
    seats = acme.quantity() + 1
    with acme.site() as (address, _), chromium_page() as page:
        sign_in(page, address, OWNER, PASSWORD, "/teams/1/subscription/")
        paid = page.locator("dl.facts div", has_text="Paid seats").locator("dd")
        assert paid.inner_text().strip() == str(seats - 1)
        acme.shell(ONE_AFTER_THE_OTHER % (30, 31))
        assert acme.is_at(seats)
        page.reload()
        assert paid.inner_text().strip() == str(seats)


# Without Celery -------------------------------------------------------------


@pytest.fixture
def site(template_repo: Path, tmp_path: Path) -> Iterator[tuple[str, Any, Any]]:
    """The address of a project without Celery, its Stripe, and its web server, which prints e-mails."""
    project, programs = installed(template_repo, tmp_path, "3.13", subscriptions="standard", use_celery=False)
    manage = (programs / "python", "manage.py")
    with load_module("tests/subscriptions/fake_stripe.py").FakeStripe() as stripe:
        keys = {"STRIPE_API_URL": stripe.url, "STRIPE_SECRET_KEY": "sk_test_1", "STRIPE_WEBHOOK_SECRET": "whsec_1"}
        variables = {"DEBUG": "1", **keys}
        run(project, *manage, "migrate", **variables)
        run(project, *manage, "shell", "-c", ADD_USERS, **variables)
        with serving(project, programs, tmp_path, **variables) as (address, web):
            yield address, stripe, web
    assert not left_in(tmp_path)


def tell(site: str, stripe_id: str, secret: str) -> int:
    """Send a signed event about a subscription, as Stripe does; return the status of the answer."""
    event = {"object": "event", "type": "test", "data": {"object": {"object": "subscription", "id": stripe_id}}}
    body, now = json.dumps(event), int(time.time())
    signature = hmac.new(secret.encode(), f"{now}.{body}".encode(), hashlib.sha256).hexdigest()
    headers = {"Stripe-Signature": f"t={now},v1={signature}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{site}/stripe/webhook/", body.encode(), headers)) as answer:
        return answer.status


def test_a_team_is_joined_and_paid_for_without_celery(site):
    address, stripe, web = site
    with chromium_page(viewport={"width": 1280, "height": 900}) as page:
        sign_in(page, address, OWNER, PASSWORD, "/teams/")
        page.get_by_label("Name of the team").fill("Rockets")
        page.get_by_role("button", name="Make the team").click()
        page.get_by_text("1 seat taken").wait_for()
        page.get_by_label("E-mail address").fill(JANE)
        page.get_by_role("button", name="Send the invitation").click()
        page.get_by_text("Invited, not here yet").wait_for()
    web.says("do nothing")
    # Long lines of e-mails are folded on their way.
    [path] = re.findall(r"://127\.0\.0\.1:\d+(/teams/invitations/\S+)", quopri.decodestring(web.text).decode())
    with chromium_page(viewport={"width": 360, "height": 780}, color_scheme="dark") as page:
        page.goto(address + path)
        page.get_by_role("main").get_by_role("link", name="Sign in").click()
        page.get_by_label("Email").fill(JANE)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("main").get_by_role("button", name="Sign In").click()
        page.get_by_role("button", name="Accept the invitation").click()
        page.get_by_text("2 seats taken").wait_for()
        assert not has_sideways_scrolling(page)
        page.get_by_role("link", name="Subscription").click()
        page.get_by_text("An owner of the team can subscribe").wait_for()
        assert tell(address, stripe.subscribe(int(re.search(r"/teams/(\d+)/", page.url)[1])), "whsec_1") == 200
        page.reload()
        page.get_by_text("Active").wait_for()
        assert not has_sideways_scrolling(page)
