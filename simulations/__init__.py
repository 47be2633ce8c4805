"""Many sites on one machine, through the same apps as a deployment."""
