"""The linter of privacy settings: names what makes an epsilon false, why, and how to mend it."""
