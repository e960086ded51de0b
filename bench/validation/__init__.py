"""Predictions of published configurations, beside a closed form and what was published."""
