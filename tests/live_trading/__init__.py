"""Tests of the room ``live_trading``."""
