"""The audit report: what a data-protection officer receives, and how every number is checked."""
