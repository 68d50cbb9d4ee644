"""Figures -> tables for people, Markdown and JSON for the record."""
