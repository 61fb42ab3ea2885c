"""All settings of the suite, in one class. `atelier settings` prints them.

A value is read from `ATELIER_<SERVICE>_<NAME>`, else `ATELIER_<NAME>`, else a file named after the
setting in the directory ATELIER_SECRETS_DIR, else the default.
"""

import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from shared.keeping_settings import KeepingSettings
from shared.legacy_settings import LegacySettings
from shared.market_settings import MarketSettings
from shared.model_settings import ModelSettings
from shared.review_settings import ReviewSettings

SERVICES = ("assets", "conversions", "pipeline", "techfiles")
PORTS = {"assets": 50051, "conversions": 50052, "pipeline": 50053, "techfiles": 50054}
STORAGE_HTTP_PORT = 50080
WEB_PORT = 50090
_FONT_HEADS = (b"\x00\x01\x00\x00", b"OTTO", b"ttcf", b"true")


class WrongSetting(ValueError):
    """A setting doesn't fit what the service has. The text names the setting and what to do."""


class VariantPreset(BaseModel):
    """A variant that fits into width x height pixels; see shared.imaging.Preset."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern="^[a-z][a-z0-9-]{0,39}$")
    width: int = Field(ge=1, le=16383)
    height: int = Field(ge=1, le=16383)
    format: Literal["webp", "avif", "jpeg", "png"] = "webp"
    quality: int = Field(80, ge=1, le=100)
    effort: int = Field(4, ge=0, le=9)


def networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Parses networks such as '10.1.0.0/16, fd00::/8'. Raises ValueError."""
    return [ip_network(part.strip()) for part in text.split(",") if part.strip()]


def fonts(text: str) -> list[Path]:
    """Parses paths such as '/usr/share/fonts/noto:/srv/House.ttf'. Raises ValueError for a path
    that doesn't exist or has no font in it."""
    paths = [Path(part) for part in text.split(os.pathsep) if part]
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"{path} isn't there; name folders or files of fonts, separated by {os.pathsep}"
            )
        if not any(
            _is_font(file) for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        ):
            raise ValueError(f"{path} has no TTF, OTF or TTC font that can be read")
    return paths


def _is_font(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in _FONT_HEADS
    except OSError:
        return False


class Settings(KeepingSettings, LegacySettings, MarketSettings, ModelSettings, ReviewSettings):
    """The settings of one service's process."""

    model_config = SettingsConfigDict(
        extra="ignore",
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,  # a wrong value may be a secret
    )

    # Server
    host: str = Field(
        "127.0.0.1",
        description="address to bind; another than loopback needs TRANSPORT tls or mesh",
    )
    port: int = Field(
        0,
        description=(
            "gRPC port, of web the HTTP port; 0 takes the usual one (assets 50051 ... web 50090)"
        ),
    )
    transport: Literal["loopback", "tls", "mesh"] = Field(
        "loopback",
        description="tls: this server has certificates; mesh: a balancer or mesh in front ends TLS",
    )
    tls_certificate: Path | None = Field(None, description="PEM chain for TRANSPORT=tls")
    tls_key: Path | None = Field(None, description="PEM key for TRANSPORT=tls")
    processes: int = Field(1, ge=1, le=64, description="server processes sharing the port")
    max_in_flight: int = Field(
        400,
        ge=1,
        description=(
            "unary calls at once per process, and a quarter as many uploads in a stream; more are"
            " RESOURCE_EXHAUSTED, as are those of an owner who holds more than a share"
        ),
    )
    max_streams: int = Field(
        16_000,
        ge=1,
        description=(
            "watches, downloads and calls that wait for a job, at once per process; shared likewise"
        ),
    )
    default_deadline_seconds: float = Field(30, gt=0, description="for a call that sets none")
    max_deadline_seconds: float = Field(300, gt=0, description="cap on what a unary call may set")
    drain_seconds: float = Field(10, gt=0, description="after SIGTERM, time for calls in flight")
    metrics_port: int = Field(
        0,
        description=(
            "Prometheus metrics over HTTP on HOST; further processes take the ports after it; 0:"
            " none. Services of one machine need one each: ATELIER_ASSETS_METRICS_PORT ..."
        ),
    )
    worker_metrics_port: int = Field(
        0, description="the same for a worker: tries of jobs, and what jobs wait for; 0: none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level logged"
    )

    # Identity
    trust_file: Path = Field(
        Path(".atelier/keys/trust.json"), description="public keys and what each may sign"
    )
    service_key_file: Path | None = Field(
        None, description="private key for calls to other services"
    )

    # Database
    database_url: SecretStr = Field(
        SecretStr(""), description="postgresql:// URL of the role this process runs as"
    )
    app_password: SecretStr = Field(
        SecretStr(""), description="migrate only: password given to <service>_app"
    )
    worker_password: SecretStr = Field(
        SecretStr(""), description="migrate only: password given to <service>_worker"
    )
    pool_size: int = Field(10, ge=1, description="connections per process")
    pool_wait_seconds: float = Field(
        2, gt=0, description="wait for a connection before RESOURCE_EXHAUSTED"
    )
    statement_timeout_seconds: float = Field(30, gt=0, description="cap on one statement")
    lock_timeout_seconds: float = Field(
        5, gt=0, description="wait for a row another call holds before ABORTED"
    )

    # Background
    job_lease_seconds: float = Field(
        15, gt=0, description="a worker silent for this long has lost its jobs"
    )
    thumbnail_wait_seconds: float = Field(
        3,
        ge=0,
        description=(
            "longest time that an answer which waited for a picture waits for its thumbnail, too"
        ),
    )
    job_wait_hours: float = Field(
        24,
        gt=0,
        description=(
            "how long a job waits for a service, database or store that is away before it fails"
        ),
    )
    worker_concurrency: int = Field(
        4, ge=1, description="jobs at once per service and worker process"
    )
    imaging_processes: int = Field(
        2, ge=1, description="child processes that decode images, per process"
    )
    vision_models: str = Field(
        "",
        description=(
            "folder of the models that `make vision` fetches, by which `local` finds persons and"
            " faces; empty: it works with outlines alone"
        ),
    )
    event_retention_hours: float = Field(72, gt=0, description="how long a watch can be resumed")
    answer_retention_hours: float = Field(
        24, gt=0, description="how long a request_id is remembered"
    )

    # Storage
    storage: Literal["disk", "s3"] = Field("disk", description="where bytes are kept")
    storage_root: Path = Field(
        Path(".atelier/objects"), description="directory of the disk backend"
    )
    storage_secret_file: Path = Field(
        Path(".atelier/keys/storage.secret"), description="signs URLs of the disk backend"
    )
    storage_url: str = Field(
        "", description="base of disk URLs as clients reach it; empty: http://127.0.0.1:50080"
    )
    public_url: str = Field(
        "", description="base of URLs of public files, for a CDN; empty: the storage's own"
    )
    s3_endpoint: str = Field("", description="S3 endpoint as this process reaches it")
    s3_public_endpoint: str = Field(
        "", description="S3 endpoint as clients reach it; empty: the same"
    )
    s3_bucket: str = Field("atelier", description="bucket")
    s3_region: str = Field("us-east-1", description="region")
    s3_access_key: SecretStr = Field(SecretStr(""), description="access key")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="secret key")

    # Print: tech packs and documents
    fonts: str = Field(
        "",
        description=(
            "folders and files of fonts (TTF, OTF, TTC) for scripts that the bundled fonts lack,"
            " separated by colons; of several that have a character the first prints it"
        ),
    )

    # Requests to URLs that callers name: webhooks, imports by URL
    outbound_allowed_networks: str = Field(
        "",
        description=(
            "networks, such as 10.1.0.0/16, separated by commas, that may be called although not"
            " public"
        ),
    )
    outbound_ca_file: Path | None = Field(
        None, description="PEM of authorities to trust besides the usual ones"
    )
    webhook_http: bool = Field(False, description="webhooks may go to http:// too")
    webhook_timeout_seconds: float = Field(15, gt=0, description="time a receiver has to answer")
    webhook_first_retry_seconds: float = Field(
        5, gt=0, description="pause after a first failure; then 4x, up to 8 h"
    )
    webhook_give_up_hours: float = Field(72, gt=0, description="how long a delivery is tried")
    webhook_log_days: float = Field(30, gt=0, description="how long the log of deliveries is kept")

    # Assets
    upload_url_minutes: float = Field(15, gt=0, description="life of an upload URL")
    resumable_upload_hours: float = Field(
        24, gt=0, description="how long parts of a resumable upload are taken and kept"
    )
    download_url_minutes: float = Field(60, gt=0, description="life of a download URL")
    max_image_bytes: int = Field(10 * 1024 * 1024, gt=0, description="largest image")
    max_pdf_bytes: int = Field(50 * 1024 * 1024, gt=0, description="largest PDF")
    max_pixels: int = Field(
        50_000_000, gt=0, description="most pixels of an image, all frames together"
    )
    refuse_locations: bool = Field(
        False,
        description=(
            "refuse pictures whose EXIF or XMP says where they were taken; originals are kept as"
            " they came"
        ),
    )
    variant_presets: list[VariantPreset] = Field(
        [],
        max_length=16,
        description=(
            "presets besides thumb, small, large and avif, or instead of one of the same name, as"
            ' JSON: [{"name": "zoom", "width": 2400, "height": 2400, "format": "webp", "quality":'
            " 85}]"
        ),
    )
    public_kinds: list[str] = Field(
        ["style"],
        description=(
            "kinds whose files are public unless their upload says otherwise, as JSON, such as"
            ' ["style", "generated", "result"]; photographs of people (user) never are'
        ),
    )
    eager_variants: dict[str, list[str]] = Field(
        {},
        description=(
            "presets made as soon as an image of a kind is READY, as JSON by kind, instead of the"
            ' usual ones: {"photo": ["thumb", "zoom"]}; without it all four for what people upload,'
            " thumb for what services make"
        ),
    )

    c2pa_trust_anchors: Path | None = Field(
        None,
        description=(
            "PEM certificates; content credentials whose signer leads to one are TRUSTED, not only"
            " VALID"
        ),
    )

    c2pa_certificate: Path | None = Field(
        None,
        description=(
            "PEM chain, the signer's certificate first, with which pictures that a trained model"
            " made are signed (C2PA); empty: they aren't signed"
        ),
    )
    c2pa_key: Path | None = Field(
        None,
        description=(
            "PEM key of C2PA_CERTIFICATE, without password: P-256, P-384, Ed25519, or RSA of 2048"
            " bits or more"
        ),
    )

    usage_address_days: float = Field(
        30,
        gt=0,
        description=(
            "usage history keeps whole IP addresses and user agents this long, then shortens them"
        ),
    )
    trusted_proxies: str = Field(
        "",
        description=(
            "networks of proxies whose x-forwarded-for is believed, such as 10.0.0.0/8, fd00::/8"
        ),
    )
    prices_file: Path | None = Field(
        None,
        description=(
            "prices of stores, in the form of services/assets/accounting/prices.yaml; empty: that"
            " one"
        ),
    )

    # Credits: what conversions charge for jobs
    credits: Literal["recorded", "enforced"] = Field(
        "recorded",
        description=(
            "enforced: a job is refused that costs more than its owner has; recorded: the account"
            " goes below 0"
        ),
    )
    model_prices_file: Path | None = Field(
        None,
        description=(
            "prices of jobs and of providers, in the form of services/conversions/prices.yaml;"
            " empty: that one"
        ),
    )
    quota_owner_monthly_free_conversions: int | None = Field(
        None,
        ge=0,
        description=(
            "conversions of free pictures that cost an owner nothing in a calendar month (UTC);"
            " not set: all of them"
        ),
    )
    budget_owner_daily_credits: int = Field(
        0, ge=0, description="credits that an owner's jobs may reserve on a day (UTC); 0: no limit"
    )
    budget_owner_daily_cost_micros: int = Field(
        0,
        ge=0,
        description=(
            "estimated costs of an owner's calls to paid providers on a day (UTC), in millionths of"
            " the price table's currency; 0: no limit"
        ),
    )
    ledger_check_minutes: float = Field(
        60,
        gt=0,
        description="pause between checks that every account is the sum of its entries",
    )

    # Consent
    consent_required: list[str] = Field(
        [],
        description=(
            "tasks that need a recorded consent for every photograph of a person (kind user) that"
            ' they take, as JSON: ["conversion"]; generation and analysis name all of theirs,'
            " generation.image and the like one"
        ),
    )
    # Addresses of the other services
    assets_address: str = Field("127.0.0.1:50051", description="where assets answers")
    conversions_address: str = Field("127.0.0.1:50052", description="where conversions answers")
    pipeline_address: str = Field("127.0.0.1:50053", description="where pipeline answers")
    techfiles_address: str = Field("127.0.0.1:50054", description="where techfiles answers")

    # The web process
    web_origins: list[str] = Field(
        [],
        description=(
            'origins whose pages may call the web process, as JSON: ["https://shop.example"]; each'
            " call needs a token all the same"
        ),
    )

    @field_validator("fonts")
    @classmethod
    def _are_fonts(cls, text: str) -> str:
        fonts(text)
        return text

    @field_validator("outbound_allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        networks(text)
        return text

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        service = cls.model_config.get("title") or ""
        sources: list[PydanticBaseSettingsSource] = [init_settings]
        sources += (
            [EnvSettingsSource(settings_cls, env_prefix=f"ATELIER_{service.upper()}_")]
            if service
            else []
        )
        sources.append(EnvSettingsSource(settings_cls, env_prefix="ATELIER_"))
        if (
            isinstance(file_secret_settings, SecretsSettingsSource)
            and file_secret_settings.secrets_dir
        ):
            sources.append(file_secret_settings)
        return tuple(sources)


def load(service: str) -> Settings:
    """Loads one service's settings from the environment. Raises pydantic.ValidationError naming the
    setting."""

    class Of(Settings):
        model_config = SettingsConfigDict(
            title=service, secrets_dir=os.environ.get("ATELIER_SECRETS_DIR")
        )

    settings: Settings = Of()
    return settings
