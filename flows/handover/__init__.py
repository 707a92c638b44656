"""Promotion and hand-over: rules, the registry, model cards, export and push."""
