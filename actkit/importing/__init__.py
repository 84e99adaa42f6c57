"""Files that other scripts wrote, as cubes."""
