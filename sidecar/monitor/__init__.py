"""The process beside the gateway that runs sampled requests again, compares, judges and tells."""
