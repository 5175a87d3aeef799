"""The project's settings as they are under other variables, without those of this process, and without its .env."""

import os
import re
import runpy
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

# Nonsense by the variable that is set to it: each value, and words of the sentence that it brings.
Table = Mapping[str, list[tuple[str, str]]]
# Stands in values that no sentence may show.
SECRET = "hunter2"


def variables_of_this_machine() -> set[str]:
    """Return the names of all variables in .env.example and .env, including those behind a # sign."""
    files = [Path(__file__).resolve().parent.parent / name for name in (".env.example", ".env")]
    texts = [file.read_text(errors="replace") for file in files if file.is_file()]
    return {name for text in texts for name in re.findall(r"^(?:# *)?(?:export +)?(\w+)=", text, re.MULTILINE)}


def load_settings(folder: Path, env_file: str | bytes = "", **variables: str) -> dict[str, Any]:
    """Return the names that settings.py has in this folder, under these variables and this .env.

    Raises ImproperlyConfigured, as the settings do. The environment is the same as before when this returns.
    """
    original = find_spec(f"{settings.ROOT_URLCONF.partition('.')[0]}.settings").origin
    copy = folder / "project/settings.py"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(original, copy)
    (folder / ".env").write_bytes(env_file.encode() if isinstance(env_file, str) else env_file)
    with mock.patch.dict(os.environ, {"DEBUG": "1"} | variables, clear=True):
        return runpy.run_path(str(copy))


def refusal(folder: Path, env_file: str | bytes = "", **variables: str) -> str:
    """Return what is said when the settings cannot be loaded; fail if they can."""
    with pytest.raises(ImproperlyConfigured) as refused:
        load_settings(folder, env_file, **variables)
    return str(refused.value)


def rows(table: Table) -> list[Any]:
    """Return each row of the table as what a test is called with: the variable, the value and the words."""
    return [
        pytest.param(name, value, words, id=f"{name}={value}")
        for name, nonsense in table.items()
        for value, words in nonsense
    ]


def assert_told(folder: Path, name: str, value: str, words: str) -> None:
    """Fail unless the value is refused in one line that names the variable, says the words and keeps the secret."""
    # A database for which all variables of databases count.
    sentence = refusal(folder, **{"DATABASE_URL": "postgres:///acme"} | {name: value})
    assert sentence.startswith(f"{name} is ") and words in sentence, sentence
    assert len(sentence.splitlines()) == 1 and sentence.endswith((".", ")")), sentence
    assert SECRET not in sentence
