"""Tests of the room ``venue``."""
