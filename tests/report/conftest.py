"""Fixtures of the tests of reports."""

import pytest

from jaxsplit.report import figures


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time of a page; these tests read its words."""
    monkeypatch.setattr(figures, "svg", lambda *args, **kwargs: "<svg></svg>")
