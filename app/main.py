"""`panel serve app/` runs this for each browser."""

from app.page import show

show()
