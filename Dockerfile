FROM python:3.11-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PORT=8080

WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY notifier.py commands.py handlers.py auth.py metrics.py store.py mailer.py delivery.py schemas.py settings.py templates.py openapi.py docs.py ./

USER 65532:65532
EXPOSE 8080

# Any answer of HTTP will do: it lives. The service itself says 503 while MongoDB is away, and recovers without a restart.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", \
    "import os, http.client as h; c = h.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/'); c.getresponse()"]

CMD ["python", "notifier.py"]
