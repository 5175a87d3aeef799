"""Limits how often a person may do something that costs money or bothers others."""

from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models import F
from django.utils import timezone


class HourlyAllowance(models.Model):
    """How often each person has done something in the current hour.

    The primary key of a counting model is the person, and `counted` names its field with the number.
    """

    counted: ClassVar[str]

    hour_began_at = models.DateTimeField(default=timezone.now)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{getattr(self, self.counted)} {self.counted} since {self.hour_began_at:%H:%M}"

    @classmethod
    def use(cls, user_id: int, limit: int) -> bool:
        """Count once more for the person, unless the hourly limit is reached. Return whether it was counted."""
        now = timezone.now()
        cls.objects.get_or_create(pk=user_id)
        own = cls.objects.filter(pk=user_id)
        own.filter(hour_began_at__lte=now - timedelta(hours=1)).update(**{"hour_began_at": now, cls.counted: 0})
        # This is one statement, so that simultaneous requests do not count as one.
        return bool(own.filter(**{f"{cls.counted}__lt": limit}).update(**{cls.counted: F(cls.counted) + 1}))
