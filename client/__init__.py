"""What runs at a site, beside the private images."""
