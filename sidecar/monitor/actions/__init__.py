"""What may be done about a version that is worse, one file an action."""
