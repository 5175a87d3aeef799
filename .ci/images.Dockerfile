# Debian's Caddy and rclone, where the images of these names cannot be pulled.
FROM python:3.13-slim AS packages
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends caddy rclone >/dev/null

FROM packages AS rclone
ENTRYPOINT ["rclone"]

FROM packages AS caddy
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
