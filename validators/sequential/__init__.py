"""Evidence that may be looked at as often as one likes: e-processes for rates and for pairs."""
