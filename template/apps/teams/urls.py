from django.urls import path

from . import views

app_name = "teams"
urlpatterns = [
    path("", views.team_list, name="list"),
    path("<id:team_id>/", views.team, name="team"),
    path("<id:team_id>/invitations/", views.invite, name="invite"),
    path("<id:team_id>/invitations/<id:invitation_id>/withdraw/", views.withdraw, name="withdraw"),
    path("<id:team_id>/members/<id:membership_id>/role/", views.change_role, name="change_role"),
    path("<id:team_id>/members/<id:membership_id>/remove/", views.remove, name="remove"),
    path("invitations/<str:token>/", views.invitation, name="invitation"),
]
