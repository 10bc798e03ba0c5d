"""The forwards of the models with an external memory."""
