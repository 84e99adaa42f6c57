"""Web app: widgets, layout, sessions, limits and path checks; what a notebook could use is in `actkit`."""
