"""Every patch's effect on every pixel's every class logit, from one forward pass per patch."""
