"""The user of this project. https://docs.djangoproject.com/en/stable/topics/auth/customizing/"""

from typing import ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Lower
from django.utils.translation import gettext_lazy as _

from .managers import UserManager

ADDRESS_TAKEN = _("A user with that email address already exists.")


class User(AbstractUser):
    """A person, known by an e-mail address. Add your own fields here."""

    username = None
    # Unique twice: Django's login requires a unique field, and the constraint below also ignores case.
    email = models.EmailField(_("email address"), unique=True, error_messages={"unique": ADDRESS_TAKEN})

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()

    class Meta(AbstractUser.Meta):
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                Lower("email"), name="users_user_email_unique_in_any_case", violation_error_message=ADDRESS_TAKEN
            ),
        ]

    def save(self, *args, **kwargs) -> None:
        """Save the user with the address in lower case, because allauth looks it up in lower case."""
        self.email = type(self).objects.normalize_email(self.email)
        super().save(*args, **kwargs)
