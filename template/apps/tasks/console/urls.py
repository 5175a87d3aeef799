from django.urls import path

from . import views

app_name = "tasks"
urlpatterns = [
    path("add/", views.add, name="add"),
    path("result/<str:ticket>/", views.result, name="result"),
]
