"""Ends as a worker does that dies while it looks for overdue messages: with kombu's lock in its hands."""

import os

import django
from celery import current_app
from kombu.transport.redis import Mutex

django.setup()

with current_app.connection_for_read() as connection:
    channel = connection.default_channel
    with channel.conn_or_acquire() as client, Mutex(client, channel.unacked_mutex_key, channel.unacked_mutex_expire):
        os._exit(0)
