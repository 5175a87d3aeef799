"""The admin's forms for schedules. They refuse what beat cannot use, because beat could only tell its log."""

from datetime import timedelta
from typing import Any

from celery.schedules import ParseException
from django import forms

from apps.tasks.beat.crontab import ClockCrontab
from apps.tasks.beat.timing import CRONTAB_FIELDS
from apps.web import clock


class CrontabForm(forms.ModelForm):
    """A crontab. django-celery-beat accepts some that Celery cannot read, such as 7 for Sunday."""

    def clean(self) -> dict[str, Any]:
        """Refuse each field that Celery cannot read, and days that do not occur."""
        values = super().clean()
        columns = {name: values[name] for name in CRONTAB_FIELDS if name in values}
        for name, value in columns.items():
            try:
                ClockCrontab(**{name: value})
            except (ParseException, ValueError) as error:
                sunday = " Sunday is 0." if name == "day_of_week" else ""
                self.add_error(name, f"Celery cannot read this: {error}.{sunday}")
        if not self.errors:
            try:
                ClockCrontab(**columns)
            except ValueError as error:
                self.add_error("day_of_month", f"Celery cannot use this: {error}")
        return values


class IntervalForm(forms.ModelForm):
    """An interval."""

    def clean(self) -> dict[str, Any]:
        """Refuse an interval after which no calendar has a date."""
        values = super().clean()
        try:
            clock.now() + timedelta(**{values.get("period", "days"): values.get("every", 0)})
        except OverflowError:
            self.add_error("every", "The next run would be after the year 9999.")
        return values
