"""A server of real sites: SuperLink, coordinator, front and status page, under one supervisor."""
