"""What is known of templates: whether people paused them, and under which names they were sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from etl import postgres
from etl.errors import FORCE, Refused
from etl.mail import rules
from etl.plumbing import queries
from etl.plumbing.counted import counted
from etl.plumbing.redact import quote_value

if TYPE_CHECKING:
    from etl.postgres import Connection
    from etl.run import Run
    from etl.settings import Settings


def missing(connection: Connection) -> list[str]:
    """Return the templates of the rules that have no row yet; takes no lock."""
    known = {row["template"] for row in postgres.query(connection, "email_templates_known")}
    return sorted(set(rules.templates().values()) - known)


def update(connection: Connection, settings: Settings) -> list[str]:
    """Add the templates of the rules that have no row yet, bring up their times; return the new."""
    told = orjson.dumps(rules.limits()).decode()
    rows = postgres.query(connection, "email_templates", told, settings.email_min_gap_hours)
    return [row["template"] for row in rows]


def keep_history(run: Run) -> None:
    """Give what is of a former template its new name; `decisions.prepare` told the rules before.

    Raises:
        Refused: a template seems to be renamed and no rule says so, hence everybody would be
            mailed again for the same visit.
    """
    if any(rule.renamed_from for rule in rules.RULES):
        postgres.execute(run.session, queries.load("postgres", "email_rename"))
        postgres.query(run.session, "email_rename_unsubscribed")
    if run.options.force:
        return
    named = {*rules.templates().values(), *rules.RETIRED}
    named |= {rule.renamed_from for rule in rules.RULES if rule.renamed_from}
    former = [
        row["template"]
        for row in postgres.query(run.session, "email_templates_used")
        if row["template"] not in named
    ]
    if not former:
        return
    rows = postgres.query(run.session, "email_former", orjson.dumps(former).decode())
    said = [
        f"the template {quote_value(row['template'])}, which no rule has, has"
        f" {counted(row['mails'], 'mail')} of the segment {quote_value(row['segment'])}, as"
        f" {rules.templates()[row['segment']]} has"
        for row in rows
        if row["segment"] in rules.templates()
    ]
    if said:
        raise Refused(
            f"templates: {'; '.join(said)}. If it was renamed, say renamed_from in RULES"
            " (etl/mail/rules.py), or all are mailed again for the same visit; if its mails are"
            f" not to count, put it in RETIRED there. {FORCE}"
        )
