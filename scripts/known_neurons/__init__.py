"""Rules and texts of the neurons that scripts/make_known_neurons.py writes."""
