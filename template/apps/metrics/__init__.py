"""What Prometheus reads: the state of the queues from the web server at /metrics, and counts of tasks from workers.

`alerts.yml` has rules for Prometheus, and `grafana.json` a dashboard for Grafana.
"""
