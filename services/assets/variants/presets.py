"""Presets: which variants there can be, and which are made at once for which kinds. The others are
made on demand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.assets.core import rules
from shared.imaging import DEFAULT_PRESETS, Preset
from shared.rpc import errors
from shared.settings import Settings

_DEFAULT_NAMES = tuple(preset.name for preset in DEFAULT_PRESETS)
# Photographs are looked at in every size. What a service made is mostly looked at in lists; the few
# callers that show it, or put it into a document, ask for the presets that they need.
_EAGER: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(rules.KIND_ROLES, _DEFAULT_NAMES),
    **dict.fromkeys(rules.SERVICE_KINDS, ("thumb",)),
}


@dataclass(frozen=True)
class Presets:
    """`by_name`: every preset. `eager`: those made as soon as an image of the kind is READY."""

    by_name: Mapping[str, Preset]
    eager: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, settings: Settings) -> "Presets":
        """Returns the default presets with what the operator added or changed. Raises ValueError
        for an unknown kind or preset."""
        added = [Preset(**preset.model_dump()) for preset in settings.variant_presets]
        by_name = {preset.name: preset for preset in (*DEFAULT_PRESETS, *added)}
        for kind, names in settings.eager_variants.items():
            if kind not in _EAGER:
                raise ValueError(
                    f"eager_variants: there is no kind {kind!r}; there are"
                    f" {', '.join(sorted(_EAGER))}"
                )
            for name in names:
                if name not in by_name:
                    raise ValueError(
                        f"eager_variants: {kind}: {name!r} is not a preset: {', '.join(by_name)}"
                    )
        return cls(by_name, {**_EAGER, **settings.eager_variants})

    def check(self, named: Mapping[str, str]) -> None:
        """Raises INVALID_ARGUMENT for the first (field path, name) whose name isn't a preset."""
        for path, name in named.items():
            if name not in self.by_name:
                raise errors.invalid(
                    path, f"{name!r} is not a preset; there are {', '.join(self.by_name)}"
                )
