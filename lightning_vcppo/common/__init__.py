"""What every other folder may use; it knows none of them."""
