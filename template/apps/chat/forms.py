from django import forms
from django.conf import settings

from .models import Chat


class AskForm(forms.Form):
    """A question to the model."""

    text = forms.CharField(
        label="Message",
        max_length=settings.CHAT_QUESTION_CHARACTERS,
        widget=forms.Textarea(attrs={"rows": 1, "placeholder": "Ask anything", "data-send-with-enter": "yes"}),
    )


class NameForm(forms.ModelForm):
    """The name of a chat."""

    name = forms.CharField(max_length=80, widget=forms.TextInput(attrs={"autocomplete": "off"}))

    class Meta:
        model = Chat
        fields = ["name"]
