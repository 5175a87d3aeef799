"""Gunicorn's options. `gunicorn` reads this file from the folder in which it is started, and commands override it.

https://gunicorn.org/reference/settings/
"""

# Slow visitors occupy none of the threads. Each thread may hold a connection to the database.
worker_class = "apps.web.buffering.BufferingWorker"
threads = 4
# Which proxies are believed is a matter of the settings. By itself, gunicorn would believe everybody on this machine.
forwarded_allow_ips = ""
