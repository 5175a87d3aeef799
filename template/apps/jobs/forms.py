from django import forms
from django.core.exceptions import ValidationError

from .models import Job, State

# How many jobs of one person may wait or run, because everybody shares the workers.
MOST_ACTIVE = 10


class StartForm(forms.ModelForm):
    """The options with which a job is started."""

    # Shorter than the time limit of tasks.
    total = forms.IntegerField(label="Length in seconds", min_value=1, max_value=120)
    fail_on_purpose = forms.BooleanField(label="Fail half way; a retry succeeds", required=False)

    class Meta:
        model = Job
        fields = ["total", "fail_on_purpose"]

    def clean_total(self) -> int:
        """Return the length, unless too many jobs of this person are already waiting or running."""
        active = self.instance.owner.jobs.filter(state__in=[State.QUEUED, State.RUNNING])
        if active.count() >= MOST_ACTIVE:
            raise ValidationError(f"{MOST_ACTIVE} of your jobs wait or run. Cancel one, or wait for the end of one.")
        return self.cleaned_data["total"]
