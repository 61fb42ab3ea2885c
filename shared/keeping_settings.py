"""The settings of how much is kept, and for how long."""

from pydantic import Field
from pydantic_settings import BaseSettings


class KeepingSettings(BaseSettings):
    """The part of `Settings` that is about trash, upkeep, quotas and retention."""

    trash_days: float = Field(
        30,
        gt=0,
        description=(
            "how long a deleted asset, dataset, job, product, tech file, collection or export can"
            " come back"
        ),
    )
    cleanup_minutes: float = Field(
        60, ge=0, description="pause between cleanups; 0: only when an operator asks"
    )
    cleanup_max_items: int = Field(
        10_000, ge=1, description="most items of each kind that one cleanup takes"
    )
    idle_session_days: float = Field(
        0,
        ge=0,
        description=(
            "a session without a change for so long goes to the trash (183: half a year); 0: never"
        ),
    )
    reconcile_minutes: float = Field(
        10, ge=0, description="pause between reconciler runs; 0: only when asked"
    )
    reconcile_max_items: int = Field(
        10_000, ge=1, description="most objects that one reconciler run looks at"
    )
    reconcile_grace_minutes: float = Field(
        60,
        ge=0,
        description=(
            "an object younger than this may belong to an upload in flight, and is left alone"
        ),
    )
    quota_owner_stored_bytes: int = Field(
        0, ge=0, description="bytes that an owner may store; 0: no limit"
    )
    quota_owner_assets: int = Field(
        0, ge=0, description="assets that an owner may have; 0: no limit"
    )
    quota_owner_monthly_bandwidth_bytes: int = Field(
        0,
        ge=0,
        description="bytes that may be sent of an owner's assets in a calendar month; 0: no limit",
    )
    quota_deployment_stored_bytes: int = Field(
        0, ge=0, description="bytes that all owners together may store; 0: no limit"
    )
    quota_deployment_assets: int = Field(
        0, ge=0, description="assets that all owners together may have; 0: no limit"
    )
    quota_deployment_monthly_bandwidth_bytes: int = Field(
        0, ge=0, description="bytes that may be sent of all assets in a calendar month; 0: no limit"
    )
    # Retention: how long conversions keeps jobs and what belongs to them
    retention_failed_days: float = Field(
        0,
        ge=0,
        le=36500,
        description="days until failed and cancelled jobs go to the trash; 0: never",
    )
    retention_conversion_days: float = Field(
        0,
        ge=0,
        le=36500,
        description="days until completed conversions go to the trash, with results; 0: never",
    )
    retention_generation_days: float = Field(
        0,
        ge=0,
        le=36500,
        description="days until completed generations go to the trash, with results; 0: never",
    )
    retention_analysis_days: float = Field(
        0, ge=0, le=36500, description="days until completed analyses go to the trash; 0: never"
    )
    retention_input_days: float = Field(
        0,
        ge=0,
        le=36500,
        description=(
            "days until photographs of people that completed conversions were made from go to the"
            " trash; 0: never"
        ),
    )
    retention_archived_file_days: float = Field(
        0,
        ge=0,
        le=36500,
        description="days until archived tech files go to the trash; 0: never",
    )
    retention_export_days: float = Field(
        0,
        ge=0,
        le=36500,
        description="days until the bytes of exports of tech packs are removed; 0: never",
    )
    quota_owner_export_bytes: int = Field(
        0,
        ge=0,
        description="bytes of exports that an owner may have before more are refused; 0: no limit",
    )
    quota_deployment_export_bytes: int = Field(
        0,
        ge=0,
        description=(
            "bytes of exports that all owners may have before more are refused; 0: no limit"
        ),
    )
    retention_call_days: float = Field(
        0,
        ge=0,
        le=36500,
        description=(
            "days until the record of a call to a provider loses its texts, which are handle and"
            " category; 0: never"
        ),
    )
