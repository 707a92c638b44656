"""Deployments: flows on a schedule or from a form, and the workers that run them."""
