"""Predicts memory, bytes and seconds of a training before it runs (docs/plan.md)."""
