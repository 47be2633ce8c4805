"""The REST service and the web page of a site."""
