"""Rollout analysis: functions of arrays (frames, atoms, 3); no torch and no model is imported here."""
