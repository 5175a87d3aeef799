"""What the templates of chats need."""

from django import template

from apps.chat.markdown import to_html

register = template.Library()

register.filter("markdown", to_html)
