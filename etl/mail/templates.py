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

    Decisions take the one for the other already, hence this comes last, because workers must not
    wait: mails that they hold are locked for as long as the commit takes.
    """
    if run.options.dry_run or not any(rule.renamed_from for rule in rules.RULES):
        return
    for is_held in (False, True):
        postgres.execute(run.session, queries.load("postgres", "email_rename"), is_held)
    if run.job.shard[0] == 0:  # for all of them, which would wait for each other
        postgres.query(run.session, "email_rename_unsubscribed")


def check_names(run: Run) -> None:
    """See that no template was renamed without a word in the rules.

    Raises:
        Refused: one seems to be, hence everybody would be mailed again for the same visit.
    """
    if run.options.force:
        return
    named = {name for rule in rules.RULES for name in rule.names} | rules.RETIRED
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
