"""One batch through the model, and the buffers that hold its layer outputs."""
