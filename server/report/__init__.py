"""Pages and plots made from what a run released."""
