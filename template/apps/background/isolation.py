"""Runs a task in the surroundings that the settings describe, whoever has used the thread before."""

import decimal
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from django.conf import settings
from django.urls import set_script_prefix, set_urlconf
from django.utils import timezone, translation


def isolated(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in the project's language and time zone, and undo what it activates. Return and raise as it does.

    A thread keeps what is activated in it: that of a page, which may run tasks after its transaction, and
    any thread that runs one task after the other.
    """
    return copy_context().run(_call_as_the_settings_say, function, args, kwargs)


def _call_as_the_settings_say(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    translation.deactivate()
    timezone.deactivate()
    set_urlconf(None)
    set_script_prefix(settings.FORCE_SCRIPT_NAME or "/")
    # Code changes this object in place, so a copy of the context would not be enough.
    decimal.setcontext(decimal.DefaultContext)
    return function(*args, **kwargs)
