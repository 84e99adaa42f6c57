"""Views of the app: the form of a run and the list of runs."""
