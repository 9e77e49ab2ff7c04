"""Black boxes: functions whose values are all that clients can ask for, and how they are evaluated."""
