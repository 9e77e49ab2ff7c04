"""What must be trained before a run can begin."""
