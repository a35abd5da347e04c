"""Metrics of yes/no answers, and POPE's three parsers."""
