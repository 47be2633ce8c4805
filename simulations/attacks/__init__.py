"""An auditor that attacks the real training loop, and the broken builds that it must catch."""
