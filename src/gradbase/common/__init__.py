"""Errors and units that every room shares."""
