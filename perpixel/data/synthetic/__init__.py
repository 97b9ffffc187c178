"""`SyntheticEvidence`: procedural scenes in which it is known which pixels decide each label."""
