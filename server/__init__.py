"""What coordinates the sites and never sees an image of theirs."""
