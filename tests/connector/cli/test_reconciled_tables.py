"""What `verify` prints of a release whose points are as they should be, one by one, and not in number."""

import pytest

from connector.cli.reconciled_tables import print_reconciled
from connector.releases.reconcile import ReconcileReport


@pytest.mark.parametrize(("points", "recorded", "held", "said"), [(6, 12, 12, True), (6, 6, 6, False)])
def test_numbers_that_differ_alone_are_told(
    points: int, recorded: int, held: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ReconcileReport("things.cosine.1", points=points, recorded=recorded, held=held)
    assert report.consistent is not said
    print_reconciled([report])
    assert ("holds 6 points, the ledger counts 12, the embedding sets 12" in capsys.readouterr().out) is said
