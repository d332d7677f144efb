"""The one loop: transformers' Trainer, with the order of the data, the held-out score and the log made ours."""
