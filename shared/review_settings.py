"""The settings of what persons decide: reviews and logs of pipeline, releases of techfiles."""

from pydantic import Field
from pydantic_settings import BaseSettings


class ReviewSettings(BaseSettings):
    """The part of `Settings` that is about decisions of persons."""

    review_below_analysis: float = Field(
        0.80, ge=0, le=1, description="results of phase 1 with less confidence wait for a review"
    )
    review_below_market: float = Field(
        0.80, ge=0, le=1, description="results of phase 2 with less confidence wait for a review"
    )
    review_below_seo: float = Field(
        0.80, ge=0, le=1, description="results of phase 3 with less confidence wait for a review"
    )
    review_below_listing: float = Field(
        0.80, ge=0, le=1, description="results of phase 4 with less confidence wait for a review"
    )
    review_sample: float = Field(
        0,
        ge=0,
        le=1,
        description=(
            "share of the confident results that is reviewed all the same, to know how many of them"
            " are wrong"
        ),
    )
    review_decisions: int = Field(
        1, ge=1, le=5, description="persons that have to say the same about a review"
    )
    review_due_hours: float = Field(
        24, ge=0, le=87600, description="hours until a review is due; 0: reviews have no due time"
    )
    log_debug_days: float = Field(
        0, ge=0, le=36500, description="days that lines of level debug are kept; 0: for ever"
    )
    log_info_days: float = Field(
        0, ge=0, le=36500, description="days that lines of level info are kept; 0: for ever"
    )
    log_warning_days: float = Field(
        0, ge=0, le=36500, description="days that lines of level warning are kept; 0: for ever"
    )
    log_error_days: float = Field(
        0, ge=0, le=36500, description="days that lines of level error are kept; 0: for ever"
    )
    release_by_another: bool = Field(
        False,
        description="true: only a person other than its maker approves a release of a tech pack",
    )
