"""The tuned-config database: what was tried, what won, for which chip, and how sure we are of it."""
