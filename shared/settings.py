"""Every setting of the suite, in one class. `atelier settings` prints this table.

A value is read from `ATELIER_<SERVICE>_<NAME>`, else `ATELIER_<NAME>`, else a file named like the setting in the
directory ATELIER_SECRETS_DIR, else the default.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

SERVICES = ("assets", "conversions", "pipeline", "techfiles")
PORTS = {"assets": 50051, "conversions": 50052, "pipeline": 50053, "techfiles": 50054}
STORAGE_HTTP_PORT = 50080


class Settings(BaseSettings):
    """The settings of one service's process."""

    model_config = SettingsConfigDict(extra="ignore", arbitrary_types_allowed=True)

    # Server
    host: str = Field("127.0.0.1", description="address to bind; another than loopback needs TRANSPORT tls or mesh")
    port: int = Field(0, description="gRPC port; 0 takes the service's usual one (assets 50051 ...)")
    transport: Literal["loopback", "tls", "mesh"] = Field(
        "loopback", description="tls: this server has certificates; mesh: a balancer or mesh in front ends TLS"
    )
    tls_certificate: Path | None = Field(None, description="PEM chain for TRANSPORT=tls")
    tls_key: Path | None = Field(None, description="PEM key for TRANSPORT=tls")
    processes: int = Field(1, ge=1, le=64, description="server processes sharing the port")
    max_in_flight: int = Field(400, ge=1, description="unary calls at once per process; more are RESOURCE_EXHAUSTED")
    default_deadline_seconds: float = Field(30, gt=0, description="for a call that sets none")
    max_deadline_seconds: float = Field(300, gt=0, description="cap on what a unary call may set")
    drain_seconds: float = Field(10, gt=0, description="after SIGTERM, time for calls in flight")
    metrics_port: int = Field(
        0, description="Prometheus metrics over HTTP on HOST; further processes take the ports after it; 0: none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")

    # Identity
    trust_file: Path = Field(Path(".atelier/keys/trust.json"), description="public keys and what each may sign")
    service_key_file: Path | None = Field(None, description="private key for calls to other services")

    # Database
    database_url: SecretStr = Field(SecretStr(""), description="postgresql:// URL of the role this process runs as")
    app_password: SecretStr = Field(SecretStr(""), description="migrate only: password given to <service>_app")
    worker_password: SecretStr = Field(SecretStr(""), description="migrate only: password given to <service>_worker")
    pool_size: int = Field(10, ge=1, description="connections per process")
    pool_wait_seconds: float = Field(2, gt=0, description="wait for a connection before RESOURCE_EXHAUSTED")
    statement_timeout_seconds: float = Field(30, gt=0, description="cap on one statement")
    lock_timeout_seconds: float = Field(5, gt=0, description="wait for a row another call holds before ABORTED")

    # Background
    job_lease_seconds: float = Field(15, gt=0, description="a worker silent for this long has lost its jobs")
    worker_concurrency: int = Field(4, ge=1, description="jobs at once per service and worker process")
    imaging_processes: int = Field(2, ge=1, description="child processes that decode images, per process")
    event_retention_hours: float = Field(72, gt=0, description="how long a watch can be resumed")
    answer_retention_hours: float = Field(24, gt=0, description="how long a request_id is remembered")

    # Storage
    storage: Literal["disk", "s3"] = Field("disk", description="where bytes are kept")
    storage_root: Path = Field(Path(".atelier/objects"), description="directory of the disk backend")
    storage_secret_file: Path = Field(
        Path(".atelier/keys/storage.secret"), description="signs URLs of the disk backend"
    )
    storage_url: str = Field("", description="base of disk URLs as clients reach it; empty: http://127.0.0.1:50080")
    public_url: str = Field("", description="base of URLs of public files, for a CDN; empty: the storage's own")
    s3_endpoint: str = Field("", description="S3 endpoint as this process reaches it")
    s3_public_endpoint: str = Field("", description="S3 endpoint as clients reach it; empty: the same")
    s3_bucket: str = Field("atelier", description="bucket")
    s3_region: str = Field("us-east-1", description="region")
    s3_access_key: SecretStr = Field(SecretStr(""), description="access key")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="secret key")

    # Assets
    upload_url_minutes: float = Field(15, gt=0, description="life of an upload URL")
    download_url_minutes: float = Field(60, gt=0, description="life of a download URL")
    max_image_bytes: int = Field(10 * 1024 * 1024, gt=0, description="largest image")
    max_pdf_bytes: int = Field(50 * 1024 * 1024, gt=0, description="largest PDF")
    max_pixels: int = Field(50_000_000, gt=0, description="most pixels of an image, all frames together")
    quota_owner_stored_bytes: int = Field(0, ge=0, description="bytes that an owner may store; 0: no limit")
    quota_owner_assets: int = Field(0, ge=0, description="assets that an owner may have; 0: no limit")
    quota_owner_monthly_bandwidth_bytes: int = Field(
        0, ge=0, description="bytes that may be sent of an owner's assets in a calendar month; 0: no limit"
    )
    quota_deployment_stored_bytes: int = Field(0, ge=0, description="the same for all owners together")
    quota_deployment_assets: int = Field(0, ge=0, description="the same for all owners together")
    quota_deployment_monthly_bandwidth_bytes: int = Field(0, ge=0, description="the same for all owners together")
    prices_file: Path | None = Field(None, description="prices of stores, as services/assets/prices.yaml; empty: that")

    # The other services, as this one reaches them
    assets_address: str = Field("127.0.0.1:50051", description="assets")
    conversions_address: str = Field("127.0.0.1:50052", description="conversions")
    pipeline_address: str = Field("127.0.0.1:50053", description="pipeline")

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
        sources += [EnvSettingsSource(settings_cls, env_prefix=f"ATELIER_{service.upper()}_")] if service else []
        sources.append(EnvSettingsSource(settings_cls, env_prefix="ATELIER_"))
        if isinstance(file_secret_settings, SecretsSettingsSource) and file_secret_settings.secrets_dir:
            sources.append(file_secret_settings)
        return tuple(sources)


def load(service: str) -> Settings:
    """The settings of one service, from the environment. Raises pydantic.ValidationError naming the setting."""
    import os

    class Of(Settings):
        model_config = SettingsConfigDict(title=service, secrets_dir=os.environ.get("ATELIER_SECRETS_DIR"))

    settings: Settings = Of()
    return settings
