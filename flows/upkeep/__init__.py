"""Upkeep: runs brought back, verified, and room made."""
