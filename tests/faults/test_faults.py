"""No task is lost, and none is run twice by our fault, whatever dies or goes away."""

from dataclasses import replace

import pytest

from tests.faults import faults
from tests.faults.faults import FAULTS, Act, Outcomes
from tests.faults.stage import SLOTS

pytestmark = [pytest.mark.faults, pytest.mark.run]

# How many unreadable messages the probe sends to each broker.
UNREADABLE = {"redis": 12, "rabbitmq": 9}


def after(act: Act) -> pytest.MarkDecorator:
    """Let the fault happen before the test; `outcomes` is what became of the tasks on each of its brokers and pools."""
    return pytest.mark.parametrize("outcomes", [(FAULTS[act.__name__], False)], indirect=True, ids=[""])


def enqueued_after(act: Act) -> pytest.MarkDecorator:
    """Let the fault happen to tasks of Django's framework; on other pools than the usual one with the slow tests."""
    fault = FAULTS[act.__name__]
    ways = [pytest.param((replace(fault, pools=faults.PREFORK), True), id="prefork")]
    if others := tuple(pool for pool in fault.pools if pool not in faults.PREFORK):
        ways.append(pytest.param((replace(fault, pools=others), True), id="others", marks=pytest.mark.slow))
    return pytest.mark.parametrize("outcomes", ways, indirect=True)


def others(outcomes: Outcomes, **expected: object) -> list[str]:
    """Return a sentence for each figure that is not the expected one."""
    return [
        f"{broker} {pool}: {name} is {getattr(outcome, name)!r}, {outcome}"
        for (broker, pool), outcome in outcomes.items()
        for name, value in expected.items()
        if getattr(outcome, name) != value
    ]


@pytest.mark.slow
@after(faults.no_fault)
def test_without_a_fault_all_tasks_are_run_once(outcomes):
    assert not others(outcomes, sent=200, lost=0, stuck=0, refused=0, twice=0, again=0)


# Processes that die ---------------------------------------------------------


@after(faults.killed_child)
def test_a_killed_pool_child_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)


@after(faults.killed_worker)
def test_a_killed_worker_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)
    # What it had in its hands may run again, and nothing else.
    assert all(outcome.twice <= SLOTS for outcome in outcomes.values()), outcomes


@pytest.mark.slow
@after(faults.killed_in_a_look)
def test_a_worker_that_dies_with_the_lock_on_what_others_held_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)


@after(faults.stopped_in_mid_task)
def test_a_worker_that_is_not_given_the_time_to_end_gives_back_what_it_runs_and_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0, twice=0, note="ended in time")


@after(faults.stopped_while_some_end)
def test_a_worker_that_stops_gives_back_no_task_that_has_ended(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0, twice=0)


@after(faults.poison_task)
def test_a_task_that_kills_its_worker_is_kept_as_failed_and_harms_no_other(outcomes):
    assert not others(outcomes, failed=1, lost=0, stuck=0)


@after(faults.unknown_task)
def test_a_task_that_no_worker_knows_is_kept_as_failed(outcomes):
    assert not others(outcomes, failed=1, lost=0, stuck=0, twice=0)


@after(faults.unwritable_rows)
def test_failed_tasks_whose_rows_cannot_be_written_as_they_are_hold_no_slot(outcomes):
    assert not others(outcomes, sent=200, failed=4, lost=0, stuck=0, twice=0)


@after(faults.unreadable_messages)
def test_messages_that_nobody_can_read_are_kept_as_failed_and_end_no_worker(outcomes):
    assert not others(outcomes, sent=200, failed=0, lost=0, stuck=0, twice=0)
    notes = {broker: f"{count} of {count} kept; the worker was started 1 times" for broker, count in UNREADABLE.items()}
    assert all(outcome.note == notes[broker] for (broker, _), outcome in outcomes.items()), outcomes


@pytest.mark.slow
@after(faults.hung_tasks)
def test_tasks_that_hang_are_kept_as_failed_and_hold_up_no_other(outcomes):
    assert not others(outcomes, failed=4, lost=0, stuck=0, twice=0)


@pytest.mark.slow
@after(faults.busy_neighbour)
def test_tasks_do_not_wait_behind_a_worker_that_is_busy(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0, twice=0, again=0)
    assert not others(outcomes, note="0 others waited for them")


@pytest.mark.slow
@after(faults.burst)
def test_many_tasks_that_end_at_once_are_acknowledged(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0, twice=0, again=0)


# Brokers that go away -------------------------------------------------------


@after(faults.restarted_redis)
def test_a_restart_of_redis_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)


@pytest.mark.slow
@after(faults.killed_node)
def test_a_killed_node_of_a_rabbitmq_cluster_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)


@after(faults.broker_away)
def test_a_broker_that_was_away_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)
    # Redis is told later which tasks have ended meanwhile. RabbitMQ has delivered them again by then.
    assert outcomes["redis", "prefork"].twice == 0


@pytest.mark.slow
@after(faults.broker_flapping)
def test_a_broker_that_comes_and_goes_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)


@pytest.mark.slow
@after(faults.silent_network)
def test_a_network_that_swallows_messages_loses_nothing(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)


@after(faults.stalled_redis)
def test_what_is_sent_while_redis_stands_still_runs_once(outcomes):
    assert not others(outcomes, sent=200, lost=0, stuck=0, failed=0, twice=0, refused=0)


@after(faults.failed_over)
def test_a_failover_of_redis_loses_nothing_and_ends_no_worker(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0, note="the worker was started 1 times")


@pytest.mark.slow
@after(faults.broken_chord)
def test_a_chord_goes_on_although_parts_of_it_run_twice(outcomes):
    assert not others(outcomes, sent=200, lost=0, stuck=0, failed=0)


@after(faults.broker_down_at_enqueue)
def test_a_broker_that_is_down_refuses_a_task_with_a_clear_error(outcomes):
    assert not others(outcomes, sent=0, refused=2 + faults.CROWD)
    assert all(outcome.note.count("OperationalError") == 3 for outcome in outcomes.values())


@after(faults.worker_before_broker)
def test_a_worker_waits_for_its_broker(outcomes):
    assert not others(outcomes, lost=0, stuck=0, twice=0)


@after(faults.transactions)
def test_tasks_are_sent_when_the_transaction_is_committed_and_never_after_a_rollback(outcomes):
    assert not others(outcomes, sent=100, lost=0, twice=0)
    assert not others(outcomes, note="0 ran after a rollback")


@after(faults.broker_away_at_commit)
def test_tasks_of_transactions_that_are_committed_without_a_broker_are_sent_later(outcomes):
    assert not others(outcomes, sent=100, lost=0, stuck=0)
    assert not others(outcomes, note="0 ran after a rollback")


# Queues that are emptied ----------------------------------------------------


@after(faults.cleared_cache)
def test_clearing_the_cache_leaves_the_queue(outcomes):
    assert not others(outcomes, lost=0, twice=0)


@pytest.mark.slow
@after(faults.full_redis)
def test_a_redis_without_memory_refuses_tasks_and_loses_none(outcomes):
    assert not others(outcomes, lost=0, stuck=0)
    assert all(outcome.refused for outcome in outcomes.values())


@after(faults.lost_data)
def test_durable_tasks_survive_the_loss_of_all_data_in_redis(outcomes):
    assert not others(outcomes, lost=0, stuck=0)


# Tasks that take long -------------------------------------------------------


@after(faults.long_countdown)
def test_a_countdown_beyond_the_visibility_timeout_runs_each_task_once(outcomes):
    assert not others(outcomes, lost=0, stuck=0, twice=0, again=0)


@after(faults.long_task)
def test_a_task_beyond_the_visibility_timeout_is_ended_before_it_is_run_twice(outcomes):
    assert not others(outcomes, failed=4, lost=0, stuck=0, twice=0, again=0)


# Beat -----------------------------------------------------------------------


@after(faults.two_beats)
def test_two_beats_send_each_due_task_once(outcomes):
    assert not others(outcomes, sent=faults.DUE_TASKS, lost=0, twice=0)


@after(faults.killed_beat)
def test_the_beat_that_stands_by_takes_over_and_sends_nothing_twice(outcomes):
    assert not others(outcomes, lost=0, twice=0)


# Tasks of Django's framework ------------------------------------------------


@enqueued_after(faults.killed_worker)
def test_a_killed_worker_loses_no_enqueued_task(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0)


@pytest.mark.slow
@enqueued_after(faults.stopped_in_mid_task)
def test_a_worker_that_is_not_given_the_time_to_end_gives_back_enqueued_tasks(outcomes):
    assert not others(outcomes, lost=0, stuck=0, failed=0, note="ended in time")


@pytest.mark.slow
@enqueued_after(faults.broker_away)
def test_while_the_broker_is_away_enqueued_tasks_are_neither_refused_nor_lost(outcomes):
    assert not others(outcomes, sent=200, refused=0, lost=0, stuck=0, failed=0)


@pytest.mark.slow
@enqueued_after(faults.transactions)
def test_tasks_are_enqueued_when_the_transaction_is_committed_and_never_after_a_rollback(outcomes):
    assert not others(outcomes, sent=100, lost=0, twice=0)
    assert not others(outcomes, note="0 ran after a rollback")


@pytest.mark.slow
@enqueued_after(faults.poison_task)
def test_an_enqueued_task_that_kills_its_worker_is_kept_as_failed_and_harms_no_other(outcomes):
    assert not others(outcomes, failed=1, lost=0, stuck=0)
