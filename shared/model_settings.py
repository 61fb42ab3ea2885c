"""The settings of providers of models: which does what, and how each is reached."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings


class _OfTask(BaseModel):
    model_config = ConfigDict(extra="forbid")

    input: dict[str, Any]  # with placeholders


class FalModel(_OfTask):
    """What the provider fal runs for a task."""

    app: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)+$", max_length=200)


class ReplicateModel(_OfTask):
    """What the provider replicate runs for a task: owner/name or owner/name:version."""

    model: str = Field(pattern=r"^[\w.-]+/[\w.-]+(:[0-9a-f]{64})?$", max_length=300)


class ModelSettings(BaseSettings):
    """The part of `Settings` that is about providers of models."""

    providers: dict[str, list[str]] = Field(
        {},
        description=(
            "which provider does what, in the order in which they are asked, as JSON by task: "
            '{"conversion": ["fashn", "gemini"], "generation": ["gemini"], "analysis": ["gemini"]};'
            " generation.sketch and the like name one task, * all that nothing else names; local"
            " does what isn't named"
        ),
    )
    provider_concurrency: dict[str, int] = Field(
        {},
        description=(
            'calls at once per provider and worker process, as JSON: {"fashn": 6}; 4 without it'
        ),
    )
    provider_seconds: dict[str, float] = Field(
        {},
        description=(
            'time that a provider has for a result, as JSON: {"comfyui": 900}; 300 without it'
        ),
    )
    moderation: list[str] = Field(
        [],
        description=(
            "providers that judge texts and pictures of every job before any provider is sent it,"
            ' as JSON: ["openai", "grpc"]; every one must let the job pass; empty: nobody judges'
        ),
    )
    gemini_api_key: SecretStr = Field(SecretStr(""), description="key of the Gemini API")
    gemini_url: str = Field(
        "https://generativelanguage.googleapis.com", description="where the Gemini API answers"
    )
    gemini_image_model: str = Field(
        "gemini-nano-banana-2.1", description="model for try-ons and pictures"
    )
    gemini_text_model: str = Field("gemini-3.6-flash", description="model for analyses")
    openai_api_key: SecretStr = Field(
        SecretStr(""), description="key of the OpenAI API; may be empty for a server of your own"
    )
    openai_url: str = Field(
        "https://api.openai.com/v1",
        description="where the OpenAI API answers, or a compatible server such as vLLM's",
    )
    openai_image_model: str = Field(
        "gpt-image-2.6-flare", description="model for try-ons and pictures; empty: none"
    )
    openai_text_model: str = Field("gpt-5.4-mini", description="model for analyses; empty: none")
    openai_moderation_model: str = Field(
        "omni-moderation-latest", description="model by which openai judges, if MODERATION names it"
    )
    openai_edits: Literal["multipart", "ref_images", "none"] = Field(
        "multipart",
        description=(
            "how pictures are given to the model: multipart (OpenAI, vLLM-omni, SGLang),"
            " ref_images (LocalAI), none"
        ),
    )
    openai_seed: bool = Field(
        False, description="the server takes a seed (vLLM-omni, SGLang, LocalAI; OpenAI doesn't)"
    )
    openai_response_format: bool = Field(
        False,
        description=(
            "the server must be asked for b64_json (compatible servers); OpenAI refuses the"
            " question, and takes quality and output_format instead"
        ),
    )
    fashn_api_key: SecretStr = Field(SecretStr(""), description="key of the FASHN API")
    fashn_url: str = Field("https://api.fashn.ai", description="where the FASHN API answers")
    fashn_model: str = Field(
        "tryon-v1.6", description="model for try-ons; tryon-max costs more and has finer detail"
    )
    fal_key: SecretStr = Field(SecretStr(""), description="key of fal")
    fal_url: str = Field("https://queue.fal.run", description="where the queue of fal answers")
    fal_models: dict[str, FalModel] = Field(
        {},
        description=(
            "which app fal runs for a task, and its input, as JSON by task:"
            ' {"generation.image": {"app": "fal-ai/flux/dev", "input": {"prompt": "{prompt}",'
            ' "seed": "{seed}"}}}; a try-on is FASHN\'s without it. An input may be {user},'
            " {cloth}, {source}, {references}, {prompt}, {style}, {seed}, {aspect_ratio},"
            " {resolution}, {format}, {width}, {height}; it is left out if it has no value"
        ),
    )
    replicate_api_token: SecretStr = Field(SecretStr(""), description="token of Replicate's API")
    replicate_url: str = Field(
        "https://api.replicate.com", description="where Replicate's API answers"
    )
    replicate_models: dict[str, ReplicateModel] = Field(
        {},
        description=(
            "which model Replicate runs for a task, as JSON like fal_models:"
            ' {"generation.image": {"model": "owner/name", "input": {"prompt": "{prompt}"}}};'
            " owner/name:version for models that aren't official"
        ),
    )
    fal_jwks_url: str = Field(
        "https://rest.alpha.fal.ai/.well-known/jwks.json",
        description="where fal publishes the keys that sign its callbacks",
    )
    model_callback_url: str = Field(
        "",
        description=(
            "https URL below which fal, replicate and fashn call back when a picture is there, such"
            " as https://shop.example/callbacks (the provider's name is added); what arrives there"
            " must be passed on to DeliverCallback; empty: they are asked again and again alone"
        ),
    )
    models_address: str = Field(
        "",
        description=(
            "host:port of a model server of your own, which implements"
            " atelier.models.v1.ModelService (provider grpc); empty: none"
        ),
    )
    models_tasks: dict[str, str] = Field(
        {},
        description=(
            "what the model server does, as JSON, task and model:"
            ' {"conversion": "tryon-xl", "generation.image": "flux"}; moderation, if MODERATION'
            " names grpc"
        ),
    )
    models_token: SecretStr = Field(
        SecretStr(""), description="token that the model server is sent; empty: none"
    )
    models_tls: bool = Field(False, description="the model server is called by TLS")
    comfyui_url: str = Field(
        "",
        description="where a ComfyUI of your own answers, such as http://gpu-1:8188; empty: none",
    )
    comfyui_workflows: dict[str, str] = Field(
        {},
        description=(
            "workflows in ComfyUI's API format, as JSON, task and path of the file:"
            ' {"conversion": "/srv/workflows/tryon.json"}'
        ),
    )

    @field_validator(
        "gemini_url", "openai_url", "fashn_url", "fal_url", "replicate_url", "comfyui_url"
    )
    @classmethod
    def _is_url(cls, text: str) -> str:
        if text and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
            raise ValueError("is http:// or https:// with a host, such as http://gpu-1:8188")
        return text

    @field_validator("models_address")
    @classmethod
    def _is_host_and_port(cls, text: str) -> str:
        if text and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", text):
            raise ValueError("is host:port, such as gpu-1:50060, without a scheme")
        return text

    @field_validator("model_callback_url")
    @classmethod
    def _is_https(cls, url: str) -> str:
        if url and not re.fullmatch(r"https://[^\s?#]{1,400}", url):
            raise ValueError(
                "is an https URL of at most 400 characters, without a query, such as"
                " https://shop.example/callbacks"
            )
        return url

    @field_validator(
        "gemini_api_key",
        "openai_api_key",
        "fashn_api_key",
        "fal_key",
        "replicate_api_token",
        "models_token",
    )
    @classmethod
    def _is_one_word(cls, key: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", key.get_secret_value()):
            raise ValueError(
                "a key is one word of printable ASCII; this one has a space, a line break or"
                " another character in it"
            )
        return key
