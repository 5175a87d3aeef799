"""What goes wrong with brokers of every kind."""

from kombu.exceptions import OperationalError


class Refused(OperationalError):
    """The broker answers, and does not allow what is asked of it: a person has to, and trying again is in vain."""
