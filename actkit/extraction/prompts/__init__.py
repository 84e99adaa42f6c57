"""Rows of data as token ids, with the kind and the text of each token."""
