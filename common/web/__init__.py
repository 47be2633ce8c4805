"""What a service with a web page of its own needs: tokens, guard, limits, logs, TLS, style."""
