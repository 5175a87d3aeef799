from django import forms

from .models import Job


class StartForm(forms.ModelForm):
    """The options with which a job is started."""

    # Shorter than the time limit of tasks.
    total = forms.IntegerField(label="Length in seconds", min_value=1, max_value=120)
    fail_on_purpose = forms.BooleanField(label="Fail half way; a retry succeeds", required=False)

    class Meta:
        model = Job
        fields = ["total", "fail_on_purpose"]
