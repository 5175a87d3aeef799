"""The console: what people see and call. That is the panel, the admin, the checks, the health page and the commands.

It is a Django app of its own because it has templates, commands and an admin. The panel (`forms`, `urls`, `views`, its
templates and `home_panel` in the app's configuration) shows how a page starts a task and follows it. Delete the panel
when you no longer need it.
"""
