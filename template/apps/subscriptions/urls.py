from django.urls import path

from . import views
from .webhook import webhook

app_name = "subscriptions"
urlpatterns = [
    path("pricing/", views.pricing, name="pricing"),
    path("pricing/<id:plan_id>/", views.choose, name="choose"),
    path("stripe/webhook/", webhook, name="webhook"),
    path("teams/<id:team_id>/subscription/", views.team, name="team"),
    path("teams/<id:team_id>/subscription/checkout/<id:plan_id>/", views.checkout, name="checkout"),
    path("teams/<id:team_id>/subscription/done/", views.done, name="done"),
    path("teams/<id:team_id>/subscription/portal/", views.portal, name="portal"),
]
