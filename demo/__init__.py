"""The demonstration model: a small mixture of experts, trained from scratch on four domains of text."""
