"""Tests of the room ``data_collector``."""
