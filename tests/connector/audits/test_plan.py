"""Plans: what a request says of how an audit is made, and what is no plan."""

from collections.abc import Sequence

import pytest

from connector.audits.plan import LONGEST, AuditPlan
from connector.errors import SettingsError
from connector.requests import AuditRequest
from tests.support.errors import raises


@pytest.mark.parametrize("ks", [[], [0], [-3, 5], [LONGEST + 1]])
def test_a_length_that_no_list_has_is_an_invalid_setting(ks: Sequence[int]) -> None:
    with raises(SettingsError, LONGEST, ks):
        AuditPlan(ks=ks)


def test_a_plan_is_what_its_request_says() -> None:
    asked = {
        "ks": (3, 10),
        "queries": "all",
        "gallery": "all",
        "protocol": "coco-1k",
        "filters": {"red": "{}"},
        "slices": ("colour",),
        "sample": 5,
        "seed": 7,
        "max_qps": 2.0,
    }
    request = AuditRequest(collection="things", pairs="s", **asked)  # type: ignore[arg-type]
    assert AuditPlan.of(request) == AuditPlan(**asked)  # type: ignore[arg-type]
    assert {name: getattr(AuditPlan.of(request), name) for name in asked} == asked
