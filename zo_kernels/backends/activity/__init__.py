"""Activity perturbation of recurrent language models: what it estimates, the reference, batched torch."""
