from django import forms

from .models import Job


class StartForm(forms.ModelForm):
    """What a job is started with."""

    # Shorter than the time that a worker gives a task.
    total = forms.IntegerField(label="Length in seconds", min_value=1, max_value=120)
    fail_on_purpose = forms.BooleanField(label="Fail half way; a retry succeeds", required=False)

    class Meta:
        model = Job
        fields = ["total", "fail_on_purpose"]
