"""Recorded runs: read, diagnosed, calibrated, replayed, compared. No backend."""
