"""ProviderService: shows the providers of models and the calls to them, and lets operators switch a
provider off and set the routes of an owner."""

import json
from collections.abc import Mapping

import structlog
from atelier.conversions.v1 import provider_pb2 as pb
from atelier.conversions.v1 import provider_pb2_grpc

from services.conversions import provider_rows, rules
from services.conversions.job_kinds import KINDS
from services.conversions.provider_rows import CALLS, CHARGES, ProviderCall, ProviderStanding
from services.conversions.providers import verifying
from services.conversions.providers.callbacks import CallbackRefused
from services.conversions.providers.contract import ProviderFailed
from services.conversions.providers.routes import Routes
from shared.background.jobs import wake
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Command, Statement
from shared.formats.texts import storable
from shared.rpc import auth, errors, paging
from shared.rpc.protos import timestamp
from shared.rpc.server import Context
from shared.settings import Settings

_PUT_ROUTE = Statement(
    provider_rows.ProviderRoute,
    f"""
    INSERT INTO provider_routes (owner, task, providers, set_by)
    VALUES (%(owner)s, %(task)s, %(providers)s, %(set_by)s)
    ON CONFLICT (owner, task) DO UPDATE SET providers = EXCLUDED.providers,
        set_by = EXCLUDED.set_by, updated_at = now()
    RETURNING {provider_rows.ROUTES.columns}
    """,
)
_DELETE_ROUTE = Command("DELETE FROM provider_routes WHERE owner = %(owner)s AND task = %(task)s")
_MOST_CHARACTERS = 200  # of a provider's id of a call
_CALLING_BACK = b"SELECT set_config('app.calling_back', $1, true)"
_log = structlog.get_logger("providers")
_LIST_CALLS = Listing(CALLS, ProviderCall)


class ProviderService(provider_pb2_grpc.ProviderServiceServicer):
    def __init__(self, db: Database, settings: Settings, routes: Routes) -> None:
        self._db = db
        self._routes = routes
        self._verifier = verifying.Verifier(settings)
        self._limits: Mapping[str, int] = {
            **routes.limits(settings),
            rules.LOCAL: settings.worker_concurrency,
        }

    async def ListProviders(
        self, request: pb.ListProvidersRequest, context: Context
    ) -> pb.ListProvidersResponse:
        rows = {row.name: row for row in await self._db.all(provider_rows.SELECT_STANDINGS)}
        now = {row.name: row for row in await self._db.all(provider_rows.SELECT_AVAILABILITY)}
        operator = auth.current().role == "admin"
        providers = []
        for name in sorted(self._routes.offers):
            provider = self._message(name, rows.get(name), operator)
            if (
                provider.state == pb.PROVIDER_STATE_READY
                and name in now
                and now[name].paused_seconds
            ):
                provider.state = pb.PROVIDER_STATE_PAUSED
            providers.append(provider)
        return pb.ListProvidersResponse(providers=providers)

    async def SwitchProvider(
        self, request: pb.SwitchProviderRequest, context: Context
    ) -> pb.SwitchProviderResponse:
        name = request.provider
        if name not in self._routes.offers:
            raise errors.not_found("provider", name)
        if name == rules.LOCAL:
            raise errors.invalid("provider", "local is part of this service and can't be switched")

        async def work(m: Mutation) -> pb.SwitchProviderResponse:
            row = await m.one(
                provider_rows.SWITCH,
                {
                    "name": name,
                    "off": not request.on,
                    "by": auth.current().actor,
                    "reason": request.reason,
                },
            )
            return pb.SwitchProviderResponse(provider=self._message(name, row, operator=True))

        answer = await self._db.mutate(request, pb.SwitchProviderResponse, work)
        if request.on:
            await wake(self._db, name)
        return answer

    async def SetProviderRoute(
        self, request: pb.SetProviderRouteRequest, context: Context
    ) -> pb.SetProviderRouteResponse:
        actor = auth.current().actor
        owner = auth.act_for(request.owner)
        if problem := self._routes.problem(request.task, request.providers):
            field = "task" if problem.startswith("has no task") else "providers"
            raise errors.invalid(field, problem)

        async def work(m: Mutation) -> pb.SetProviderRouteResponse:
            if not request.providers:
                await m.run(_DELETE_ROUTE, {"owner": owner, "task": request.task})
                return pb.SetProviderRouteResponse()
            values = {
                "owner": owner,
                "task": request.task,
                "providers": list(request.providers),
                "set_by": actor,
            }
            row = await m.one(_PUT_ROUTE, values)
            return pb.SetProviderRouteResponse(route=provider_rows.route_to_proto(row))

        return await self._db.mutate(request, pb.SetProviderRouteResponse, work)

    async def ListProviderRoutes(
        self, request: pb.ListProviderRoutesRequest, context: Context
    ) -> pb.ListProviderRoutesResponse:
        owner = auth.act_for(request.owner)
        rows = await self._db.all(provider_rows.SELECT_ROUTES, {"owner": owner})
        return pb.ListProviderRoutesResponse(routes=map(provider_rows.route_to_proto, rows))

    async def ListProviderCalls(
        self, request: pb.ListProviderCallsRequest, context: Context
    ) -> pb.ListProviderCallsResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        wanted = {
            "job_id": request.job_id and parse_id(request.job_id, "job_id"),
            "provider": request.provider,
            "charge": CHARGES.word.get(request.charge),
            **created(request),
        }
        rows = await self._db.all(*_LIST_CALLS.query(page, wanted))
        calls, token = page.fill(rows, map(provider_rows.call_to_proto, rows))
        return pb.ListProviderCallsResponse(calls=calls, next_page_token=token)

    async def DeliverCallback(
        self, request: pb.DeliverCallbackRequest, context: Context
    ) -> pb.DeliverCallbackResponse:
        name = request.provider
        if name not in self._routes.offers:
            raise errors.not_found("provider", name)
        if not verifying.has_callbacks(name):
            raise errors.invalid("provider", f"{name} is one that doesn't call back")
        headers = {key.lower(): value for key, value in request.headers.items()}
        try:
            delivery = await self._verifier.check(name, headers, request.body)
        except CallbackRefused as refusal:
            raise errors.invalid("headers", f"don't show that {name} sent it: {refusal}") from None
        except ProviderFailed as failure:
            _log.warning("a callback can't be checked", provider=name, reason=failure.message)
            raise errors.unavailable(name, name) from None
        called = _call_of(name, request.body)
        # Who sends the same delivery again is answered as before, and no call is polled for it.
        once = pb.DeliverCallbackRequest(
            request_id=f"{name}/{delivery}" if delivery else request.request_id,
            provider=name,
            body=request.body,
        )

        async def work(m: Mutation) -> pb.DeliverCallbackResponse:
            m.send(_CALLING_BACK, "on")
            asked = {"provider": name, "named": called}
            found = await m.first(provider_rows.SELECT_OPEN_CALL, asked)
            m.send(_CALLING_BACK, "off")
            if found is None:
                raise errors.not_found(f"open call of {name}", called)
            await m.run(provider_rows.TELL_WORKERS, {"call_id": found.id})
            tasks = {"job_id": found.job_id, "tasks": list(KINDS)}
            started = await m.all(provider_rows.START_NOW, tasks)
            return pb.DeliverCallbackResponse(started_job=bool(started))

        return await self._db.mutate(once, pb.DeliverCallbackResponse, work)

    async def close(self) -> None:
        await self._verifier.close()

    def _message(self, name: str, row: ProviderStanding | None, operator: bool) -> pb.Provider:
        provider = pb.Provider(
            name=name,
            tasks=[
                pb.ProviderTask(task=task, model=model, place=self._routes.place(task, name))
                for task, model in self._routes.offers[name].items()
            ],
            state=pb.PROVIDER_STATE_SWITCHED_OFF
            if row and row.switched_off
            else pb.PROVIDER_STATE_READY,
        )
        if operator:
            provider.concurrency = self._limits[name]
        if operator and row:
            provider.MergeFrom(
                pb.Provider(
                    reason=row.reason,
                    switched_by=row.switched_by,
                    failures=row.failures,
                    switch_time=timestamp(row.switched_at),
                    pause_until=timestamp(row.paused_until),
                )
            )
        return provider


def _call_of(provider: str, body: bytes) -> str:
    """Returns what the provider calls the call that it calls back about. Raises INVALID_ARGUMENT if
    the body doesn't say."""
    try:
        called = verifying.call_of(provider, json.loads(body))
    except (ValueError, RecursionError):
        called = ""
    if not called or called != storable(called) or len(called) > _MOST_CHARACTERS:
        raise errors.invalid("body", f"is no callback of {provider}: it names no call")
    return called
