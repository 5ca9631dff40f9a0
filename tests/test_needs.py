"""A test whose program is missing is skipped, and fails where every test must run."""

from __future__ import annotations

import pytest
from needs import needs


def test_a_test_is_skipped_where_its_program_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needs.MUST_RUN", False)

    with pytest.raises(pytest.skip.Exception, match="apt-get install no-such-program"):
        needs("no-such-program")


def test_a_test_fails_where_every_test_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needs.MUST_RUN", True)

    with pytest.raises(pytest.fail.Exception, match="make setup"):
        needs("no-such-program", "make setup")


def test_a_program_that_is_there_is_found() -> None:
    assert needs("sh").is_file()
