from django.urls import path

from . import views

app_name = "shop"
urlpatterns = [
    path("", views.index, name="index"),
    path("<str:task_id>/", views.result, name="result"),
]
