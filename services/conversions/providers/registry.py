"""Which providers this deployment has."""

from collections.abc import Callable, Mapping, Sequence

from services.conversions import rules
from services.conversions.providers import (
    comfyui,
    fal,
    fashn,
    gemini,
    grpc_model,
    local,
    openai,
    replicate,
)
from services.conversions.providers.contract import Provider
from services.conversions.providers.routes import Routes
from shared.imaging import ImagingPool
from shared.outbound import OutboundRefused, parse_url
from shared.settings import Settings, WrongSetting

_SECONDS = 300.0

_OFFERS: Mapping[str, Callable[[Settings], Mapping[str, str]]] = {
    gemini.NAME: gemini.offers,
    openai.NAME: openai.offers,
    fashn.NAME: fashn.offers,
    fal.NAME: fal.offers,
    replicate.NAME: replicate.offers,
    grpc_model.NAME: grpc_model.offers,
    comfyui.NAME: comfyui.offers,
}
_CLASSES: Mapping[str, Callable[[Settings, ImagingPool, float], Provider]] = {
    gemini.NAME: gemini.Gemini,
    openai.NAME: openai.OpenAI,
    fashn.NAME: fashn.Fashn,
    fal.NAME: fal.Fal,
    replicate.NAME: replicate.Replicate,
    grpc_model.NAME: grpc_model.GrpcModel,
    comfyui.NAME: comfyui.ComfyUI,
}
# Those that are called over HTTP.
_URLS = {gemini.NAME, openai.NAME, fashn.NAME, fal.NAME, replicate.NAME, comfyui.NAME}
# Those that can moderate, each with what makes it do so.
_MODERATORS = {
    openai.NAME: "set ATELIER_OPENAI_MODERATION_MODEL",
    grpc_model.NAME: "name its model in ATELIER_MODELS_TASKS, as task moderation",
}
# What makes a provider usable, for whoever named it without.
_NEEDS = {
    gemini.NAME: "set ATELIER_GEMINI_API_KEY",
    openai.NAME: "set ATELIER_OPENAI_API_KEY, or ATELIER_OPENAI_URL for a server of your own",
    fashn.NAME: "set ATELIER_FASHN_API_KEY",
    fal.NAME: "set ATELIER_FAL_KEY",
    replicate.NAME: "set ATELIER_REPLICATE_API_TOKEN and ATELIER_REPLICATE_MODELS",
    grpc_model.NAME: "set ATELIER_MODELS_ADDRESS and ATELIER_MODELS_TASKS",
    comfyui.NAME: "set ATELIER_COMFYUI_URL and ATELIER_COMFYUI_WORKFLOWS",
}


def routes(settings: Settings) -> Routes:
    """Returns the deployment's table of providers. Raises WrongSetting."""
    offers = {name: found for name, of in _OFFERS.items() if (found := of(settings))}
    for name in _URLS & offers.keys():
        try:
            parse_url(getattr(settings, f"{name}_url"))
        except OutboundRefused as refusal:
            text = f"ATELIER_{name.upper()}_URL can't be called: {refusal}"
            raise WrongSetting(text) from None
    _check_moderation(settings.moderation, offers)
    return Routes(settings, {rules.LOCAL: local.TASKS, **offers}, _NEEDS)


def _check_moderation(names: Sequence[str], offers: Mapping[str, Mapping[str, str]]) -> None:
    """Raises WrongSetting if one of the providers that shall moderate can't."""
    for name in names:
        if name not in _MODERATORS:
            able = " and ".join(_MODERATORS)
            problem = f"names {name[:60]!r}, which can't moderate; {able} can"
        elif name not in offers:
            problem = f"names {name}, which this deployment doesn't have; {_NEEDS[name]}"
        elif rules.MODERATION_TASK not in offers[name]:
            problem = f"names {name}, which has no model for it; {_MODERATORS[name]}"
        else:
            continue
        raise WrongSetting(f"ATELIER_MODERATION {problem}")


def open_providers(
    settings: Settings, pool: ImagingPool, own: local.LocalProvider
) -> dict[str, Provider]:
    """Opens the providers that the settings configure. `own`: the provider `local`."""
    opened: dict[str, Provider] = {rules.LOCAL: own}
    for name, offers in _OFFERS.items():
        if offers(settings):
            seconds = settings.provider_seconds.get(name, _SECONDS)
            opened[name] = _CLASSES[name](settings, pool, seconds)
    return opened
