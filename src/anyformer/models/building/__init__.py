"""What a constructor wants: the names it reads, and the best place that gives each value (``construct.py`` builds)."""
