"""Market research, the work of phase 2: looks a product up in its owner's price book, or asks the
deployment's market endpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import protovalidate
from atelier.pipeline.v1 import market_pb2
from google.protobuf import json_format
from prometheus_client import Counter

from services.pipeline import offers, price_book_rows, result_rows
from services.pipeline.product_rows import Product
from shared.background.attempts import JobFailed, Waits
from shared.database.db import Database
from shared.formats.texts import storable_json
from shared.outbound import Outbound, OutboundFailed, OutboundRefused, Reply
from shared.rpc import guard
from shared.rpc.protos import digest, facts_message
from shared.settings import Settings
from shared.telemetry import METRICS

_ANSWER_BYTES = 400_000  # of an answer; a phase's value has at most 500,000
_EXCERPT = 300  # characters of a refusal that are shown
_WAITED_FOR = (429, 503)
_WAITS_FOR = "market"

LOOKUPS = Counter(
    "atelier_market_lookups_total",
    "Lookups of market research, by source and by how they ended: found or nothing",
    ["provider", "outcome"],
    registry=METRICS,
)


@dataclass(frozen=True)
class Finding:
    """What market research found. `value`: JSON of a MarketResearch, empty if nothing was found.
    `confidence`: None if there is no figure to give."""

    value: Mapping[str, Any]
    confidence: float | None
    provider: str
    text: str

    @property
    def evidence(self) -> list[dict[str, Any]]:
        if self.confidence is None or not self.value:
            return []
        return [{"name": "match", "value": self.confidence, "weight": 1.0, "note": self.text}]


class MarketResearch:
    """Looks products up. `db`: the price books."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._endpoint = _Endpoint(settings) if settings.market_url else None
        asks = settings.market_nothing_found == "review"
        self._nothing = 0.0 if asks else None  # the confidence in nothing

    async def close(self) -> None:
        if self._endpoint:
            await self._endpoint.close()

    async def look_up(self, product: Product, facts: Mapping[str, Any], question: str) -> Finding:
        """Looks a product up where it says. `question` names this lookup; together with what is
        asked it is the same if it is repeated. Raises JobFailed, Waits."""
        if product.market_provider == "none":
            text = "the product has no market provider; nothing was looked up"
            return Finding({}, None, "none", text)
        if product.market_provider == "http":
            found = await self._ask(product, facts, question)
        else:
            async with self._db.transaction(product.owner) as m:
                value, text, sure = await price_book_rows.look_up(m, facts)
            found = Finding(value, 1.0 if sure else 0.0, "price_book", text)
        LOOKUPS.labels(product.market_provider, "found" if found.value else "nothing").inc()
        if found.value:
            return found
        return Finding({}, self._nothing, found.provider, found.text)

    async def _ask(self, product: Product, facts: Mapping[str, Any], question: str) -> Finding:
        if self._endpoint is None:
            text = "no market endpoint is set; the operator names it in ATELIER_MARKET_URL"
            raise JobFailed("NO_MARKET_ENDPOINT", f"{text}, then retry the phase")
        currency = facts.get("price", {}).get("currency", "")
        asked = market_pb2.MarketQuestion(
            product_id=str(product.id),
            owner=product.owner,
            product=facts_message({"product": facts.get("product", {})}).product,
            currency=currency,
        )
        answer = await self._endpoint.answer(asked, f"{question}/{digest(asked)}")
        said = result_rows.plain(answer)
        value = offers.research(
            said.get("offers", ()),
            matched_by=answer.matched_by,
            preferred_currency=currency,
            msrp=said.get("msrp"),
            brand=answer.brand,
            category=answer.category,
            extras=said.get("extras", ()),
        )
        text = f"the market endpoint answered with {len(answer.offers)} offers"
        if not value:
            text = "the market endpoint found nothing, and nothing is made up"
        confidence = answer.confidence if answer.HasField("confidence") else None
        return Finding(value, confidence, f"http {answer.source}".strip(), text)


class _Endpoint:
    """The deployment's market endpoint."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.market_url
        self._seconds = settings.market_seconds
        self._token = settings.market_token.get_secret_value()
        self._out = Outbound(settings, only=[settings.market_url])

    async def close(self) -> None:
        await self._out.close()

    async def answer(
        self, asked: market_pb2.MarketQuestion, question: str
    ) -> market_pb2.MarketAnswer:
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Idempotency-Key": question,
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        body = json_format.MessageToJson(asked, indent=None).encode()
        try:
            reply = await self._out.call(
                "POST",
                self._url,
                headers,
                body,
                timeout=self._seconds,
                max_bytes=_ANSWER_BYTES,
            )
        except OutboundRefused as refusal:
            raise JobFailed("UNAVAILABLE", f"the market endpoint: {refusal}") from None
        except OutboundFailed as failure:
            raise _unanswered(failure) from None
        if reply.status == 204:
            return market_pb2.MarketAnswer()
        if reply.status != 200:
            raise self._refused(reply)
        return _read(reply.body)

    def _refused(self, reply: Reply) -> Exception:
        """Returns what a status other than 200 and 204 means."""
        body = " ".join(reply.body.decode("utf-8", "replace").replace("\0", " ").split())
        if self._token:
            body = body.replace(self._token, "(token)")
        said = f"the market endpoint answered {reply.status}: {body[:_EXCERPT] or 'without a word'}"
        if reply.status in _WAITED_FOR:
            return Waits(_WAITS_FOR, "RATE_LIMITED", said, reply.retry_after)
        if reply.status in (401, 403):
            text = f"{said}; the operator checks ATELIER_MARKET_TOKEN, then retry the phase"
            return JobFailed("ACCOUNT", text)
        if 400 <= reply.status < 500:
            return JobFailed("BAD_INPUT", said)
        if reply.status < 400:
            return JobFailed("BAD_ANSWER", f"{said}; 200 or 204 is expected, redirects included")
        return JobFailed("UNAVAILABLE", said, final=False)


def _unanswered(failure: OutboundFailed) -> Exception:
    text = f"the market endpoint: {failure.text}"
    match failure.error_class:
        case "CONNECT" | "TLS":  # nothing was sent
            return Waits(_WAITS_FOR, "UNAVAILABLE", text)
        case "TOO_LARGE":
            return JobFailed("BAD_ANSWER", text)
        case "TIMEOUT":
            return JobFailed("TIMED_OUT", text, final=False)
        case _:
            return JobFailed("UNAVAILABLE", text, final=False)


def _read(body: bytes) -> market_pb2.MarketAnswer:
    """Returns the answer. Raises JobFailed if it isn't one."""
    answer = market_pb2.MarketAnswer()
    try:
        json_format.ParseDict(storable_json(json.loads(body)), answer)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise _bad_answer(str(error)) from None
    except json_format.Error as error:
        raise _bad_answer(str(error)) from None
    for violation in protovalidate.collect_violations(answer):
        path = guard.field_path(violation.proto.field)
        raise _bad_answer(f"{path or 'the answer'}: {violation.proto.message}")
    for number, offer in enumerate(answer.offers):
        if not (offer.HasField("price") or offer.HasField("msrp")):
            raise _bad_answer(f"offers[{number}] has neither a price nor an msrp")
    return answer


def _bad_answer(why: str) -> JobFailed:
    text = f"the market endpoint's answer is not a MarketAnswer: {why[:_EXCERPT]}"
    return JobFailed("BAD_ANSWER", f"{text}; mend the endpoint, then retry the phase")
