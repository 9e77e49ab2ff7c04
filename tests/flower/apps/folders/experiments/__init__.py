"""The app's own package, of the same name as one of fedsim."""
