"""Acceptance cards for an account at OKX; in CI they run against the embedded exchange."""
