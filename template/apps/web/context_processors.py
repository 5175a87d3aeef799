from django.conf import settings
from django.http import HttpRequest


def project(request: HttpRequest) -> dict[str, str]:
    """Give every template the name of the project, as PROJECT_NAME."""
    return {"PROJECT_NAME": settings.PROJECT_NAME}
