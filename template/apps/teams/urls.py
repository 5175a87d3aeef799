from django.urls import path

from . import views

app_name = "teams"
urlpatterns = [
    path("", views.team_list, name="list"),
    path("<int:team_id>/", views.team, name="team"),
    path("<int:team_id>/invitations/", views.invite, name="invite"),
    path("<int:team_id>/invitations/<int:invitation_id>/withdraw/", views.withdraw, name="withdraw"),
    path("<int:team_id>/members/<int:membership_id>/role/", views.change_role, name="change_role"),
    path("<int:team_id>/members/<int:membership_id>/remove/", views.remove, name="remove"),
    path("invitations/<str:token>/", views.invitation, name="invitation"),
]
