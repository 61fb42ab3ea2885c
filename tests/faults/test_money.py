"""Money is exact: a hundred thousand interleavings of what may happen to jobs."""

from collections.abc import Callable, Iterator

import pytest

from tests.conversions import ledger_model
from tests.conversions.test_ledger import play_games
from tests.suite import Cluster

pytestmark = pytest.mark.faults

GAMES = 100_000


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    name = cluster.clone()
    yield name
    cluster.drop(name)


def test_no_interleaving_exceeds_a_cap_charges_twice_or_leaves_a_sum_wrong(
    cluster: Cluster, database: str, measured: Callable[[str], None]
) -> None:
    outcomes = play_games(cluster, database, GAMES, seed=100)

    assert set(outcomes) == ledger_model.OUTCOMES | {"charged"}
    measured(
        f"{GAMES:,} interleavings with {outcomes.total() - outcomes['charged']:,} steps:"
        f" {outcomes['charged']:,} jobs were charged, {outcomes['died']:,} steps died before their"
        f" commit, {outcomes['nothing']:,} came too late"
    )
