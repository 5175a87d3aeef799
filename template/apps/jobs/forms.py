from django import forms
from django.core.exceptions import ValidationError

from .models import Job, State

# So many jobs of one person may wait or run: the workers are there for all.
MOST_ACTIVE = 10


class StartForm(forms.ModelForm):
    """What a job is started with."""

    # Shorter than the time that a worker gives a task.
    total = forms.IntegerField(label="Length in seconds", min_value=1, max_value=120)
    fail_on_purpose = forms.BooleanField(label="Fail half way; a retry succeeds", required=False)

    class Meta:
        model = Job
        fields = ["total", "fail_on_purpose"]

    def clean_total(self) -> int:
        """Return the length, unless there is enough to do already."""
        active = self.instance.owner.jobs.filter(state__in=[State.QUEUED, State.RUNNING])
        if active.count() >= MOST_ACTIVE:
            raise ValidationError(f"{MOST_ACTIVE} of your jobs wait or run. Cancel one, or wait for the end of one.")
        return self.cleaned_data["total"]
