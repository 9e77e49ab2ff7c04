"""Methods that weigh clients by their losses."""
