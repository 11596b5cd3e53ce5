"""What comes over a network: fetched, kept by revision, reviewed before anything of it runs (``trust.py`` asks)."""
