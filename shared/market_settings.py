"""The settings of market research: who is asked for prices, and what happens if there are none."""

import re
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings


class MarketSettings(BaseSettings):
    """The part of `Settings` that is about market research."""

    market_provider: Literal["price_book", "http", "none"] = Field(
        "price_book",
        description="source of market data of products that name none; http needs MARKET_URL",
    )
    market_url: str = Field(
        "",
        description=(
            "endpoint of yours that is asked for offers, such as https://prices.example/offers"
            " (provider http); empty: none"
        ),
    )
    market_token: SecretStr = Field(
        SecretStr(""), description="token that the market endpoint is sent; empty: none"
    )
    market_seconds: float = Field(
        30, gt=0, le=300, description="time that the market endpoint has for an answer"
    )
    market_nothing_found: Literal["complete", "review"] = Field(
        "complete",
        description=(
            "market research that found nothing: complete goes on and flags the product, review"
            " asks a person first"
        ),
    )

    @field_validator("market_url")
    @classmethod
    def _is_endpoint(cls, text: str) -> str:
        if text and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s#]*)?", text):
            raise ValueError("is http:// or https:// with a host, without a user or a #")
        return text

    @field_validator("market_token")
    @classmethod
    def _is_a_word(cls, token: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", token.get_secret_value()):
            raise ValueError("is one word of printable ASCII, without spaces and line breaks")
        return token

    @model_validator(mode="after")
    def _has_endpoint(self) -> Self:
        if self.market_provider == "http" and not self.market_url:
            raise ValueError("MARKET_PROVIDER is http: name the endpoint in MARKET_URL")
        return self
