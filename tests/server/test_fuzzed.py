"""Requests made up from the service's own description, and from others, never make it fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import running

from carnet import Classifier
from carnet.server.app import create_app
from carnet.server.guards import Access

REQUESTS = 150
"""Made up for each operation."""


def test_no_request_makes_it_fail(exported: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="make test-browser installs schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    with running(create_app(Classifier(exported, threads=1), access=Access((), ""))) as service:
        description = schemathesis.openapi.from_url(f"{service.url}openapi.json")
        for found in description.get_all_operations():
            operation = found.ok()

            seen = 0

            @given(case=operation.as_strategy())
            @settings(
                max_examples=REQUESTS,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: object) -> None:
                nonlocal seen
                answer = case.call()  # type: ignore[attr-defined]
                assert answer.status_code < 500, answer.text
                seen += 1

            ask()
            # Where nothing can be varied, one request is all.
            assert seen >= (REQUESTS if operation.method == "post" else 1)
