FROM python:3.11-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PORT=8080

WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY notifier.py workers.py commands.py logs.py handlers.py live.py pages.py auth.py metrics.py store.py outbox.py changes.py batcher.py mailer.py delivery.py schemas.py settings.py templates.py openapi.py docs.py ./
COPY web/ ./web/

USER 65532:65532
EXPOSE 8080

# Alive, not ready: a restart would not bring MongoDB back, and the service recovers without one.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/healthz', timeout=4)"]

CMD ["python", "notifier.py"]
