"""What was measured -> tables for people, one page to show, Markdown and JSON for the record."""
