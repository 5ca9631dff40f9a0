"""The mail queue: what a run of email_triggers says of its mart."""
