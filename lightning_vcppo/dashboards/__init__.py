"""What goes to loggers and files; the only folder that names Weights & Biases."""
