"""Write to loggers and files; the only package that names Weights & Biases."""
