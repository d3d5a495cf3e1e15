"""Tests of the room ``feature_engineering``."""
