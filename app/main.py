"""Entry point that `panel serve app/` runs for each session."""

from app.page import show

show()
