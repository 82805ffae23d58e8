"""Views inside a model for one input: attention, attributions of a prediction to the input, and the logit lens."""
