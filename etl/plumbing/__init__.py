"""What every room uses and none owns: log, retries, SQL files, redaction, signals."""
