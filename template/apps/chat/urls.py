from django.urls import path

from . import live, views

app_name = "chat"
urlpatterns = [
    path("", views.index, name="index"),
    path("<uuid:chat_id>/", views.chat, name="chat"),
    path("<uuid:chat_id>/before/<id:before>/", views.chat, name="earlier"),
    path("<uuid:chat_id>/delete/", views.delete, name="delete"),
    path("<uuid:chat_id>/name/", views.name, name="name"),
    path("<uuid:chat_id>/rename/", views.rename, name="rename"),
    path("replies/<id:reply_id>/retry/", views.retry, name="retry"),
    path("replies/<id:reply_id>/stop/", views.stop, name="stop"),
    *live.urlpatterns,
]
