"""What the variables of the metrics do, and what is said about values that cannot be read."""

import pytest

from tests.environment import Table, assert_told, load_settings, rows

NONSENSE: Table = {
    "WORKER_METRICS_PORT": [("on", "a port, or a host and a port"), (":9808", "a port, or a host and a port")],
}


@pytest.mark.parametrize("name, value, words", rows(NONSENSE))
def test_nonsense_is_told(tmp_path, name, value, words):
    assert_told(tmp_path, name, value, words)


@pytest.mark.parametrize("value", ["9808", "0.0.0.0:9808", "[::]:9808"])
def test_a_worker_shows_its_metrics_on_this_machine_or_where_it_is_told(tmp_path, value):
    assert load_settings(tmp_path, WORKER_METRICS_PORT=value)["WORKER_METRICS_PORT"] == value
