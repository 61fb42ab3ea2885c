"""The settings of an older application's table of analyses, which techfiles reads and writes."""

import re

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

_NAME = re.compile(r"[A-Za-z_][\w$]{0,62}(\.[A-Za-z_][\w$]{0,62})?")


class LegacySettings(BaseSettings):
    """The part of `Settings` that is about the older application's table."""

    legacy_database_url: SecretStr = Field(
        SecretStr(""),
        description=(
            "DSN of the database with an older application's table of analyses, for techfiles;"
            " empty: none"
        ),
    )
    legacy_table: str = Field(
        "revision_vision_analysis", description="that table, as name or schema.name"
    )
    legacy_columns: dict[str, str] = Field(
        {},
        description=(
            "that table's columns where they have other names, as JSON by field: id, owner"
            " (user_id), product_id (product_idea_id), revision_id, view_type, analysis"
            " (analysis_data), model (ai_model_used), confidence (confidence_score), create_time"
            ' (created_at), update_time (updated_at); "" where there is no such column'
        ),
    )
    legacy_owner: str = Field(
        "user:{}",
        description="owner of a row, where {} is what its owner column holds",
    )
    legacy_confidence_maximum: float = Field(
        1.0, gt=0, description="confidence of the older application that means certainty; 1 or 100"
    )
    legacy_reads: bool = Field(
        True, description="runs take an analysis from that table before they pay for one"
    )
    legacy_writes: bool = Field(
        True, description="finished analyses of base views are written to that table, too"
    )

    @field_validator("legacy_table")
    @classmethod
    def _is_table(cls, text: str) -> str:
        if not _NAME.fullmatch(text):
            raise ValueError("is name or schema.name, of letters, digits, _ and $")
        return text

    @field_validator("legacy_owner")
    @classmethod
    def _has_one_place(cls, text: str) -> str:
        if text.count("{}") != 1:
            raise ValueError("has {} once, such as user:{}")
        return text
