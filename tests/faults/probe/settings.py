"""The settings of the project under test, with the probe's tasks, a database of its own, and what a run changes."""

import json
import os
from typing import Any

from acme.settings import *  # noqa: F403


def changed(value: Any, change: Any) -> Any:
    """Return the value with the change: dictionaries are merged, and null takes out, as in RFC 7386."""
    if not isinstance(change, dict):
        return change
    kept = dict(value) if isinstance(value, dict) else {}
    for name, part in change.items():
        kept[name] = changed(kept.get(name), part)
        if part is None:
            del kept[name]
    return kept


INSTALLED_APPS = [*INSTALLED_APPS, "probe"]  # noqa: F405
DATABASES["default"]["NAME"] = os.environ["PROBE_DATABASE"]  # noqa: F405
# Checks would refuse some of what is shown to lose tasks.
SILENCED_SYSTEM_CHECKS = [f"tasks.{kind}{number:03}" for kind in "EW" for number in range(100)]
for changes in json.loads(os.environ["PROBE_SETTINGS"]):
    for setting, change in changes.items():
        if change is None:
            globals().pop(setting, None)
        else:
            globals()[setting] = changed(globals().get(setting), change)
