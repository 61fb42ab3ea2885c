# One image for every server and worker; the command says which. Build: docker build -t atelier .
FROM python:3.12-slim-bookworm AS build
WORKDIR /srv/atelier
RUN python -m venv .venv
COPY requirements/build.txt requirements/run.txt requirements/
RUN .venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/build.txt \
 && .venv/bin/pip install --no-cache-dir --require-hashes --no-build-isolation \
    -r requirements/run.txt
COPY protos protos
COPY tools/stubs.py tools/stubs.py
RUN .venv/bin/python tools/stubs.py

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --create-home atelier && install -d -o atelier -g atelier /state
WORKDIR /srv/atelier
COPY --from=build /srv/atelier/.venv .venv
COPY --from=build /srv/atelier/gen gen
COPY services services
COPY shared shared
COPY web web
COPY cli cli
COPY atelier atelier
USER atelier
ENV PATH=/srv/atelier/.venv/bin:$PATH PYTHONPATH=/srv/atelier:/srv/atelier/gen PYTHONUNBUFFERED=1 ATELIER_STATE=/state
ENTRYPOINT ["python", "-m"]
CMD ["cli", "--help"]
