"""The table of the cache. Django's own command for it, `createcachetable`, is one more step that could be forgotten."""

from django.db import models


class CacheEntry(models.Model):
    """What all processes of production share for a while, such as how often somebody has tried to log in.

    Only Django's cache reads and writes it: `from django.core.cache import cache`.
    """

    cache_key = models.CharField(max_length=255, primary_key=True)
    value = models.TextField()
    expires = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.cache_key
