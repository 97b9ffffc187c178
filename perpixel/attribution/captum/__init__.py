"""captum for dense prediction: a target for any of its classes, and `explain`, one door to its methods."""
