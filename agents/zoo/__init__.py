"""The zoo: train, evaluate, film and compare agents from the command line."""
