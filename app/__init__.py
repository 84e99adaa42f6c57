"""The app: widgets, layout, sessions, limits and path checks; what a notebook could want is in `actkit`."""
