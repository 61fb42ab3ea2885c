"""Which provider serves a task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.conversions import rules
from shared.settings import Settings, WrongSetting

_CONCURRENCY = 4
_ALL = "*"


class Candidate(NamedTuple):
    """A provider, and its model for a task: a name, or a name and a version."""

    provider: str
    model: str


class Routes:
    """The deployment's table: task -> providers in the order in which they are asked.

    `offers`: by provider the tasks that it can do, each with its model. `needs`: by provider what
    makes it usable, for whoever named it without. `moderation`: the providers that judge a job
    before any is sent it. Raises WrongSetting if a setting names a provider
    or a task that isn't there.
    """

    def __init__(
        self,
        settings: Settings,
        offers: Mapping[str, Mapping[str, str]],
        needs: Mapping[str, str],
    ) -> None:
        self.offers = offers
        self._needs = needs
        self._table = settings.providers
        self.moderation = tuple(dict.fromkeys(settings.moderation))
        for task, names in self._table.items():
            self._check(task, names)
        for setting, values in (
            ("PROVIDER_CONCURRENCY", settings.provider_concurrency),
            ("PROVIDER_SECONDS", settings.provider_seconds),
        ):
            for name, value in values.items():
                if name not in needs or value <= 0:
                    raise WrongSetting(
                        f"ATELIER_{setting} has {name}: {value}; name one of"
                        f" {', '.join(needs)}, with a value above 0"
                    )

    def limits(self, settings: Settings) -> dict[str, int]:
        """Returns the most calls at once to each provider besides `local`, for each worker
        process."""
        return {
            name: settings.provider_concurrency.get(name, _CONCURRENCY)
            for name in self.offers
            if name != rules.LOCAL
        }

    @property
    def hosted(self) -> bool:
        """Returns whether there is any provider besides `local`."""
        return len(self.offers) > 1

    def names(
        self, task: str, wanted: str = "", of_owner: Mapping[str, Sequence[str]] = {}
    ) -> list[str]:
        """Returns the names of the providers to ask for a task, in order. `wanted`: the one that
        the caller asks for, alone. `of_owner`: the owner's own routes."""
        if wanted:
            return [wanted] if task in self.offers.get(wanted, ()) else []
        noun = task.partition(".")[0]
        for table in (of_owner, self._table):
            for key in (task, noun, _ALL):
                able = [name for name in table.get(key, ()) if task in self.offers.get(name, ())]
                if able:
                    return able
        return [rules.LOCAL]

    def candidates(
        self, task: str, wanted: str, of_owner: Mapping[str, Sequence[str]]
    ) -> list[Candidate]:
        """Returns the providers to ask for a task, as in `names`, with their models."""
        return [
            Candidate(name, self.offers[name][task])
            for name in self.names(task, wanted, of_owner) or [rules.LOCAL]
        ]

    def able(self, task: str) -> list[str]:
        """Returns the names of all providers that can do a task."""
        return [name for name, tasks in self.offers.items() if task in tasks]

    def place(self, task: str, name: str) -> int:
        """Returns the place of a provider in the table for a task, from 1; 0 if it has none."""
        names = self.moderation if task == rules.MODERATION_TASK else self.names(task)
        return names.index(name) + 1 if name in names else 0

    def problem(self, task: str, names: Sequence[str]) -> str:
        """Returns what is wrong with a route, "" if nothing is."""
        tasks = [each for each in rules.TASKS if task in (each, each.partition(".")[0], _ALL)]
        if not tasks:
            known = ", ".join(dict.fromkeys((_ALL, *rules.NOUNS, *rules.TASKS)))
            return f"has no task {task[:60]!r}; there are {known}"
        for name in names:
            if name not in self.offers:
                there = ", ".join(self.offers)
                help_ = f"; {self._needs[name]}" if name in self._needs else ""
                return (
                    f"names provider {name[:60]!r}, which this deployment doesn't have{help_}; it"
                    f" has {there}"
                )
            if not any(each in self.offers[name] for each in tasks):
                can = ", ".join(self.offers[name])
                return f"names {name} for {task}, which it can't do; it can do {can}"
        return ""

    def _check(self, task: str, names: Sequence[str]) -> None:
        problem = self.problem(task, names) or ("" if names else f"names nobody for {task}")
        if problem:
            raise WrongSetting(f"ATELIER_PROVIDERS {problem}")
