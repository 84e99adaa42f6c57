"""Running a model and capturing its layers: the only code of actkit that imports torch."""
