"""The reference of B2: the same read, written as FastAPI services usually are. It has token,
row-level security and validation; no logs, no metrics, no deadline.

    python -m bench.rest <database> <port> <trust file>
"""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from pydantic import BaseModel


class Facts(BaseModel):
    placeholder: str
    colours: list[tuple[str, float]]
    focal_x: float
    focal_y: float
    sharpness: float
    exposure: float


class Asset(BaseModel):
    id: UUID
    owner: str
    created_by: str
    kind: str
    state: str
    version: int
    public: bool
    free: bool
    file_name: str
    storage_key: str
    size_bytes: int
    mime_type: str
    width: int
    height: int
    sha256: str
    tags: list[str]
    metadata: dict[str, Any]
    session_id: str
    room_id: str
    product_id: str
    dataset_id: str
    is_primary: bool
    facts: Facts | None
    provenance: dict[str, Any] | None
    rejection: str
    rejection_message: str
    created_at: datetime
    updated_at: datetime


_DATABASE, _PORT, _TRUST_FILE = sys.argv[1:]
_KEYS = {}
with open(_TRUST_FILE) as trust:
    for entry in json.load(trust):
        trusted = OKPKey.import_key(entry["jwk"])
        trusted.ensure_kid()
        _KEYS[trusted.kid] = trusted
_CLAIMS = jwt.JWTClaimsRegistry(
    aud={"essential": True, "value": "atelier"}, exp={"essential": True}
)


def owner(authorization: Annotated[str, Header()]) -> str:
    try:
        token = authorization.removeprefix("Bearer ")
        decoded = jwt.decode(
            token, lambda found: _KEYS[found.headers()["kid"]], algorithms=["Ed25519"]
        )
        _CLAIMS.validate(decoded.claims)
    except (JoseError, KeyError, ValueError):
        raise HTTPException(401) from None
    return str(decoded.claims["owner"])


async def _prepare(conn: Any) -> None:
    await conn.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(
        _DATABASE, min_size=10, max_size=10, init=_prepare
    ) as app.state.pool:
        yield


app = FastAPI(lifespan=_lifespan)


@app.get("/assets/{asset_id}")
async def get_asset(asset_id: UUID, owner: Annotated[str, Depends(owner)]) -> Asset:
    async with app.state.pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT set_config('app.owner_id', $1, true)", owner)
        row = await conn.fetchrow("SELECT * FROM assets.assets WHERE id = $1", asset_id)
    if row is None:
        raise HTTPException(404)
    return Asset.model_validate(dict(row))


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(_PORT), loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
