"""When a request has arrived completely, and when it is refused. The tests of gunicorn itself start the real server."""

import pytest

from apps.web.buffering import Arrival

HEAD = b"POST /up HTTP/1.1\r\nHost: example.com\r\n"


def arrival(*pieces: bytes) -> Arrival:
    coming = Arrival()
    for piece in pieces:
        coming.add(piece)
    return coming


@pytest.mark.parametrize(
    ("pieces", "is_complete"),
    [
        ([], False),
        ([b"GET / HTTP/1.1\r\nHost: example.com\r\n"], False),
        ([b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"], True),
        ([b"GET / HTTP/1.1\r\nHost: example.com\r\n\r", b"\n"], True),
        ([HEAD + b"Content-Length: 3\r\n\r\nab"], False),
        ([HEAD + b"content-length:3\r\n\r\nab", b"c"], True),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"], False),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r", b"\n\r\n"], True),
    ],
)
@pytest.mark.parametrize("by_byte", [False, True])
def test_a_request_is_complete_when_its_last_byte_has_come(pieces, is_complete, by_byte):
    if by_byte:
        pieces = [bytes([each]) for each in b"".join(pieces)]
    coming = arrival(*pieces)
    assert (coming.is_complete, coming.refusal) == (is_complete, "")
    coming.begin_reading()
    assert coming.chunk() == b"".join(pieces)


def test_what_is_missing_is_the_end_of_the_connection_for_the_parser():
    coming = arrival(HEAD)
    coming.begin_reading()
    assert [coming.read(), coming.read()] == [HEAD, b""]


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([HEAD + b"Content-Length: 1001\r\n\r\n"], "413"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"x" * 1001], "413"),
        ([HEAD + b"X: " + b"x" * 70_000], "431"),
    ],
)
def test_a_request_that_is_too_large_is_refused(settings, pieces, status):
    settings.REQUEST_MAX_BYTES = 1000
    assert arrival(*pieces).refusal.startswith(status)


def test_a_request_that_drips_is_late(settings):
    settings.REQUEST_SECONDS = 20
    coming = arrival(HEAD)
    assert not coming.is_late
    coming.began -= 21
    assert coming.is_late
