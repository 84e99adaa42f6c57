"""Small models for features."""

from tests.extraction.conftest import saved as saved
