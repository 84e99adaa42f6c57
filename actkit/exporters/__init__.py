"""Cubes as `.pt`, NumPy, safetensors or Arrow files, and as datasets for PyTorch and Hugging Face."""
