"""Teachers behind an interface: HTTP services, functions and networks in another thread."""
