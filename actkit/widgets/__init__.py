"""What shows runs and cubes, in a notebook and in the app alike; needs Panel."""
