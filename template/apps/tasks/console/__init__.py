"""The console: what people see and call: the panel on the home page, the admin, the checks, the health page, commands.

A Django app of its own for its templates, commands and admin. The panel (`forms`, `urls`, `views`, its templates and
`home_panel` in the app's configuration) shows how a page starts a task and follows it; delete it when you need it no
more.
"""
