"""How and where cohorts are executed."""
