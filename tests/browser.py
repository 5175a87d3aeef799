"""A browser without a screen: cookies, forms and their CSRF token, in a few lines of the standard library."""

import base64
import http.cookiejar
import random
import re
import socket
import time
import urllib.parse
import urllib.request
from urllib.error import HTTPError

# Long enough for a machine with other things to do: no test measures time.
PATIENCE_SECONDS = 180
# Beside those that the system gives to whoever asks for any, and those that `manage.py dev` chooses by itself.
PORTS = range(10000, 20000)
# UDP sockets that carry nothing and are held until this process ends, each for the port that is so much lower.
claims: list[socket.socket] = []
CLAIM_OFFSET = 10000


class Browser:
    """Talks to one site, given by its address without a slash at the end."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(self.cookies)

    def get(self, path: str, password: str = "") -> tuple[int, str]:
        """Return the status and the text of a page; `password` is a user:password pair."""
        request = urllib.request.Request(self.site + path)
        if password:
            request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
        return self._open(request)

    def post(self, path: str, **fields: object) -> tuple[int, str]:
        """Send a form with the CSRF token that the last page gave."""
        token = next(cookie.value for cookie in self.cookies.cookiejar if cookie.name == "csrftoken")
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token} | fields).encode()
        return self._open(urllib.request.Request(self.site + path, data))

    def _open(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with self.opener.open(request, timeout=PATIENCE_SECONDS) as answer:
                self.address = answer.url
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def run_task(self, x: float, y: float) -> str:
        """Run the task of the home page and return what the page says in the end: the sum, if all is well."""
        assert self.get("/")[0] == 200
        status, text = self.post("/tasks/add/", x=x, y=y)
        deadline = time.monotonic() + PATIENCE_SECONDS
        page = self.address.removeprefix(self.site)
        while status == 200 and "hx-trigger" in text and time.monotonic() < deadline:
            time.sleep(0.3)
            status, text = self.get(page)
        found = re.search(r"The task returned <strong>(.*?)</strong>", text)
        return found.group(1) if found else text


def free_port() -> int:
    """Return a port of this machine that nobody listens on, and that no other test gets before this process ends.

    A server may take long to start: until then nothing else tells that its port is spoken for.
    """
    for port in random.sample(PORTS, 1000):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port + CLAIM_OFFSET))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
        else:
            claims.append(claim)
            return port
    raise OSError(f"Of {PORTS} hardly any port is free.")
