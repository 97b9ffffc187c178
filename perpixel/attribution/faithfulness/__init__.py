"""How far to trust an attribution: removal curves, reset weights, other baselines, the object alone."""
