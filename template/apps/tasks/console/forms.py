from django import forms


class AddForm(forms.Form):
    """The two numbers of the example task."""

    x = forms.IntegerField(label="First number", initial=16, min_value=-1_000_000, max_value=1_000_000)
    y = forms.IntegerField(label="Second number", initial=16, min_value=-1_000_000, max_value=1_000_000)
