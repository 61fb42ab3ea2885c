"""A provider of queues, asked for a try-on without the suite around it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import pytest
from pydantic import SecretStr

from services.conversions.providers import fal, fashn, replicate
from services.conversions.providers.contract import (
    InputPicture,
    Picture,
    PictureRequest,
    Provider,
    ProviderFailed,
)
from shared.imaging import ImagingPool
from shared.settings import Settings
from tests.conversions.queues import (
    KEY,
    FalQueue,
    FashnQueue,
    Queue,
    ReplicateQueue,
    serving,
)

DRESS = {"person": "{user}", "garment": "{cloth}", "seed": "{seed}", "n": 1}


@dataclass
class Recorded:
    """The record of a call, kept in memory."""

    id: str = "call"
    handle: str = ""
    model: str = ""
    charged: bool = True
    handles: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    progress: list[float] = field(default_factory=list)

    async def begins(self, model: str) -> None:
        assert not self.model, "one call begins once"
        self.model = model

    async def submitted(self, handle: str) -> None:
        assert self.model, "a call begins before it is sent"
        self.handles.append(handle)

    async def pauses(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def advances(self, fraction: float) -> None:
        self.progress.append(fraction)

    def used(self, **figures: float | int | str) -> None:
        self.usage |= figures


def configured(url: str, **more: Any) -> dict[str, Any]:
    """Returns settings by which each of the three providers is at `url`."""
    return {
        "fashn_api_key": SecretStr(KEY),
        "fashn_url": url,
        "fal_key": SecretStr(KEY),
        "fal_url": url,
        "replicate_api_token": SecretStr(KEY),
        "replicate_url": url,
        "replicate_models": {"conversion": {"model": "studio/dress", "input": DRESS}},
        **more,
    }


Open = Callable[[Settings, ImagingPool, float], Provider]
OF: dict[type[Queue], Open] = {
    FashnQueue: fashn.Fashn,
    FalQueue: fal.Fal,
    ReplicateQueue: replicate.Replicate,
}
ALL = pytest.mark.parametrize("kind", OF)


Q = TypeVar("Q", bound=Queue)


@dataclass
class Asked(Generic[Q]):
    """A provider, its server, and a try-on that it is asked for."""

    queue: Q
    provider: Provider
    request: PictureRequest
    call: Recorded = field(default_factory=Recorded)

    async def picture(self) -> Picture:
        return await self.provider.picture(self.request, self.call)

    async def failure(self) -> ProviderFailed:
        with pytest.raises(ProviderFailed) as failed:
            await self.picture()
        assert KEY not in failed.value.message
        return failed.value


@dataclass
class Asking:
    """Asks providers for a try-on with the pictures `shown`. `made` is what their servers give as a
    result."""

    pool: ImagingPool
    shown: Sequence[InputPicture]
    made: Path
    directory: Path

    @asynccontextmanager
    async def __call__(
        self,
        kind: type[Q],
        *,
        seconds: float = 5.0,
        task: str = "conversion",
        fields: Mapping[str, Any] = MappingProxyType({}),
        **more: Any,
    ) -> AsyncIterator[Asked[Q]]:
        """Yields the provider at a server of this kind. `fields` are those of the request, `more`
        are settings."""
        values: dict[str, Any] = {"prompt": "", "pictures": self.shown, **fields}
        async with serving(kind(self.made)) as queue:
            provider = OF[kind](Settings(**configured(queue.url, **more)), self.pool, seconds)
            yield Asked(queue, provider, PictureRequest(task, directory=self.directory, **values))
            await provider.close()
