"""How users are created and found."""

from django.contrib.auth.models import UserManager as DjangoUserManager
from django.db.models import Value
from django.db.models.functions import Lower


class UserManager(DjangoUserManager):
    """Django's manager for users without a user name: this one asks for the e-mail address instead."""

    # Migrations do not create users, so they need no reference to this module.
    use_in_migrations = False

    @classmethod
    def normalize_email(cls, email: str | None) -> str:
        """Return the address in lower case, which is how it is stored and compared."""
        return super().normalize_email(email).lower()

    def get_by_natural_key(self, email: str):
        """Return the user with the address, in whatever case it is typed; raise DoesNotExist without one."""
        return self.alias(email_lower=Lower("email")).get(email_lower=Lower(Value(email)))

    async def aget_by_natural_key(self, email: str):
        """Return the user with the address, in whatever case it is typed; raise DoesNotExist without one."""
        return await self.alias(email_lower=Lower("email")).aget(email_lower=Lower(Value(email)))

    def create_user(self, email: str, password: str | None = None, **fields):
        """Save and return a user. Without a password, nobody can sign in as this user until one is set."""
        user = self._unsaved(email, password, fields)
        user.save(using=self._db)
        return user

    async def acreate_user(self, email: str, password: str | None = None, **fields):
        """Do what create_user does, from asynchronous code."""
        user = self._unsaved(email, password, fields)
        await user.asave(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields):
        """Save and return a user who may do everything.

        The address counts as confirmed. Otherwise the first administrator could not sign in before e-mails are sent.
        """
        user = self.create_user(email, password, **fields, is_staff=True, is_superuser=True)
        user.emailaddress_set.create(email=user.email, primary=True, verified=True)
        return user

    async def acreate_superuser(self, email: str, password: str | None = None, **fields):
        """Do what create_superuser does, from asynchronous code."""
        user = await self.acreate_user(email, password, **fields, is_staff=True, is_superuser=True)
        await user.emailaddress_set.acreate(email=user.email, primary=True, verified=True)
        return user

    create_user.alters_data = acreate_user.alters_data = True
    create_superuser.alters_data = acreate_superuser.alters_data = True

    def _unsaved(self, email: str, password: str | None, fields: dict):
        if not email:
            raise ValueError("A user needs an e-mail address.")
        user = self.model(email=email, **fields)
        user.set_password(password)
        return user
