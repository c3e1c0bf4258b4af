"""What was measured, for people: tables, plots, one HTML page."""
