"""Ray: sessions, progress of remote work, and what went wrong there."""
