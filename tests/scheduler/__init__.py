"""Tests of the room ``scheduler``."""
