"""The encrypted template vault of a site."""
