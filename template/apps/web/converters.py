"""Parts of URLs, for the URLs of all apps: `path("<id:team_id>/", …)`."""

from django.urls import register_converter
from django.urls.converters import IntConverter


class IdConverter(IntConverter):
    """The id of a row. A number that no column of ids can hold is no page, whereas SQLite would fail with it."""

    regex = "[0-9]{1,18}"


register_converter(IdConverter, "id")
