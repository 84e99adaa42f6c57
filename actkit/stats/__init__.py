"""Statistics of cubes: kernels on plain arrays, and the labelled functions over them."""
