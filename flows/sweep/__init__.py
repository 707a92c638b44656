"""Sweeps: many recipes in one, each stage that several share run once."""
