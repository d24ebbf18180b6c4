"""What may be tuned: problems, configurations, chips, legality and cost. Standard library and numpy only."""
