"""Rules of storage as pure functions and tables: what fits into a quota, and which figures raise an
alert."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Thresholds stand only here: ListAlerts compares with them, and the metrics export them to the
# Prometheus rules.
ALERT_THRESHOLDS: Mapping[str, float] = {
    "pending_uploads": 100,
    "storage_quota": 0.8,
    "bandwidth_quota": 0.8,
    "failed_processing": 0.05,
}
PROCESSING_DAYS = 2  # failures are counted over today and yesterday


LIMITS = ("stored_bytes", "assets", "monthly_bandwidth_bytes")


@dataclass(frozen=True)
class _Figures:
    """A figure for each quota."""

    stored_bytes: int = 0
    assets: int = 0
    monthly_bandwidth_bytes: int = 0

    def by_quota(self) -> Mapping[str, int]:
        figures = (self.stored_bytes, self.assets, self.monthly_bandwidth_bytes)
        return dict(zip(LIMITS, figures, strict=True))


@dataclass(frozen=True)
class Allowance(_Figures):
    """Limits; 0: no limit."""

    @property
    def limits_anything(self) -> bool:
        return self != Allowance()


@dataclass(frozen=True)
class Held(_Figures):
    """What is used of each limit, in the same units."""


@dataclass(frozen=True)
class Excess:
    """A limit that would be exceeded. `needed`: what would be added to `used`."""

    quota: str
    limit: int
    used: int
    needed: int


def excess(
    allowed: Allowance, held: Held, *, size: int, assets: int, slack: int = 0
) -> Excess | None:
    """Returns the first limit that `size` more bytes and `assets` more assets would exceed, or
    None. A month's bandwidth is exceeded when it is used up.

    `slack`: how many other uploads may be under way, each of at most `size`.
    """
    wanted = (
        Excess("stored_bytes", allowed.stored_bytes, held.stored_bytes, size),
        Excess("assets", allowed.assets, held.assets, assets),
    )
    for one in wanted:
        if one.limit and one.used + one.needed * (1 + slack) > one.limit:
            return one
    month = allowed.monthly_bandwidth_bytes
    if month and held.monthly_bandwidth_bytes >= month:
        return Excess("monthly_bandwidth_bytes", month, held.monthly_bandwidth_bytes, 0)
    return None


@dataclass(frozen=True)
class Alert:
    """A figure and its threshold."""

    kind: str
    value: float
    message: str

    @property
    def threshold(self) -> float:
        return ALERT_THRESHOLDS[self.kind]

    @property
    def firing(self) -> bool:
        return self.value > self.threshold


def alerts(
    pending: int, failed_ratio: float | None, allowed: Allowance, held: Held
) -> Iterator[Alert]:
    """Yields all alerts, firing or not; those about a quota only where there is one."""
    yield Alert(
        "pending_uploads",
        pending,
        f"{pending} uploads were announced and not confirmed. If many clients wait for their"
        " confirmation, look at the database and the store (`atelier doctor`); if clients gave up,"
        " cleaning up abandoned uploads removes them.",
    )
    if allowed.stored_bytes:
        share = held.stored_bytes / allowed.stored_bytes
        text = (
            f"{share:.0%} of the storage quota is used. Purge what isn't needed, or raise the quota"
            " (SetQuota)."
        )
        yield Alert("storage_quota", share, text)
    if allowed.monthly_bandwidth_bytes:
        share = held.monthly_bandwidth_bytes / allowed.monthly_bandwidth_bytes
        text = (
            f"{share:.0%} of this month's bandwidth is used. At 100 % uploads are refused; raise"
            " the quota (SetQuota)."
        )
        yield Alert("bandwidth_quota", share, text)
    ratio = failed_ratio or 0.0
    yield Alert(
        "failed_processing",
        ratio,
        f"{ratio:.1%} of the variants that ended today and yesterday failed. ListVariants says why,"
        " the workers' log more; RegenerateVariants tries again.",
    )
