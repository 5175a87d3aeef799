# Debian's Caddy, where the image of that name cannot be pulled.
FROM python:3.13-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends caddy >/dev/null
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
