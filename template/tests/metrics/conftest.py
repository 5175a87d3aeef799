"""What the tests of the metrics share."""

import pytest

pytest.importorskip("celery")

from tests.tasks.conftest import app_in_memory as app_in_memory
