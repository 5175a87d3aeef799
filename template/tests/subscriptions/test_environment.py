"""Variables of subscriptions: what cannot be used is told in a sentence."""

import pytest

from tests.environment import SECRET, Table, assert_told, load_settings, rows

NONSENSE: Table = {
    "STRIPE_API_URL": [
        ("api.stripe.com", "but must be a URL"),
        ("ftp://api.stripe.com", "whose scheme is not one of https, http"),
        ("https://", "which names no host"),
        ("https://api.stripe.com:port", "whose port is not a number"),
    ],
    "STRIPE_SECRET_KEY": [
        (f"pk_test_{SECRET}", "but must begin with sk_ or rk_"),
        (f"whsec_{SECRET}", "but must begin with sk_ or rk_"),
        (f"sk_test_{SECRET} # mine", "A comment needs a line of its own."),
        (f'"sk_test_{SECRET}"', "Write it without the quotes."),
        ("sk_test_…", "but must be one word of ASCII"),
    ],
    "STRIPE_WEBHOOK_SECRET": [
        (f"sk_test_{SECRET}", "but must begin with whsec_"),
        (f"whsec_{SECRET} two", "but must be one word of ASCII"),
    ],
}


@pytest.mark.parametrize(("name", "value", "words"), rows(NONSENSE))
def test_a_value_that_cannot_be_used_is_told_in_a_sentence(tmp_path, name, value, words):
    assert_told(tmp_path, name, value, words)


def test_a_slash_at_the_end_of_the_server_does_not_count(tmp_path):
    assert load_settings(tmp_path, STRIPE_API_URL="http://127.0.0.1:1/")["STRIPE_API_URL"] == "http://127.0.0.1:1"
