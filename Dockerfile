FROM python:3.11-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PORT=8080

WORKDIR /app
# --build-arg REQUIREMENTS=requirements-otel.txt adds what sends traces.
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt requirements-otel.txt ./
# Swagger UI's source maps and alternative builds, 7 of its 10 MB, are never served.
RUN pip install --no-cache-dir --disable-pip-version-check -r "$REQUIREMENTS" \
    && find "$(python -c 'import swagger_ui_bundle as bundle; print(*bundle.__path__)')" \
        \( -name '*.map' -o -name '*es-bundle*' \) -delete
COPY *.py ./
COPY api/ ./api/
COPY cli/ ./cli/
COPY config/ ./config/
COPY mail/ ./mail/
COPY mongo/ ./mongo/
COPY ops/ ./ops/
COPY web/ ./web/

USER 65532:65532
EXPOSE 8080

# Liveness, not readiness: a restart would not bring MongoDB back, and the service recovers by itself.
# As a file of its own: `notifier.py health` does the same, and takes ten times as long to start.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "cli/health.py"]

LABEL org.opencontainers.image.title="notifier" \
      org.opencontainers.image.description="In-app notifications and e-mail for users in MongoDB" \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.licenses="MIT"

CMD ["python", "notifier.py"]
