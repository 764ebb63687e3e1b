"""The methods: one file per idea. `base.py` holds the two Protocols that a new one implements."""
